//! Words and answers, as they stand on the line.

use serde_json::json;

use super::*;

#[test]
fn requests_and_replies_read_back() {
    let request = Request::new(Verb::Resync, vec!["app@*".into()]);
    let line = serde_json::to_string(&request).unwrap();
    assert_eq!(line, r#"{"v":1,"verb":"resync","targets":["app@*"],"format":"json"}"#);
    assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    let targets = vec![json!("app@gpu")];
    let unchanged = [("app@gpu".to_owned(), "is paused already".to_owned())].into();
    let done = Reply { targets: targets.clone(), ..Reply::default() };
    for answer in
        [Ok(done), Ok(Reply { targets, unchanged }), Err(Refused::new(Exit::NoTarget, "no\n\"such\""))]
    {
        let line = reply(answer.clone());
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(read_reply(&line), Some(answer));
    }
    for strange in ["", "{}", r#"{"ok":true}"#, r#"{"ok":false,"exit":999,"message":""}"#] {
        assert_eq!(read_reply(strange), None, "{strange}");
    }
}
