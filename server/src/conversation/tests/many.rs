//! Many contents in one message.

use gitsync_core::wire::Encoding;

use super::*;

/// Forty files of two kilobytes.
fn many() -> String {
    (0..40).map(|n| format!("d{}/f{n}={}", n % 3, n.to_string().repeat(1024))).collect::<Vec<_>>().join(" ")
}

/// As long as it should be, and something else.
fn wrong(chunk: &Chunk) -> Chunk {
    let data = Bytes::from(vec![b'x'; chunk.size as usize]);
    Chunk { encoding: Encoding::Raw, data, ..chunk.clone() }
}

#[test]
fn all_of_them_arrive_with_their_patch() {
    let mut lab = Lab::with("a=1");
    let (list, before) = (many(), lab.held.id());
    let ack = lab.send(&list);
    assert_ne!(ack.id, before);
    assert_eq!((ack.id, ack.written), (snapshot(&list).id(), 40));
    let last = fs::read_to_string(lab.at("d0/f39")).unwrap();
    assert_eq!(last, "39".repeat(1024));
    assert_eq!(lab.staged(), 0);
}

#[test]
fn one_that_is_not_what_it_says_refuses_the_patch_and_leaves_nothing() {
    let mut lab = Lab::with("a=1");
    let list = many();
    let ToServer::Patch(header, mut frame) = lab.message(&list) else { panic!("a patch") };
    frame.contents[17] = wrong(&frame.contents[17]);
    let next = lab.talk.handle(ToServer::Patch(header, frame));
    assert_eq!(refused(&next).code, RefusalCode::PatchInvalid);
    assert_eq!(lab.staged(), 0);
    assert!(!lab.at("d0").exists() && lab.at("a").exists());
}

#[test]
fn ahead_of_a_patch_the_wrong_one_alone_is_left_out() {
    let mut lab = Lab::with("a=1");
    let list = many();
    let ToServer::Patch(header, mut frame) = lab.message(&list) else { panic!("a patch") };
    let mut contents = std::mem::take(&mut frame.contents);
    let right = contents[17].clone();
    contents[17] = wrong(&right);
    let next = lab.talk.handle(ToServer::Ahead { contents });
    assert!(matches!(next.replies[..], [ToClient::Taken { .. }]));
    assert_eq!(lab.staged(), 39);
    frame.contents = vec![right];
    let next = lab.talk.handle(ToServer::Patch(header, frame));
    assert!(matches!(&next.replies[..], [ToClient::Ack(ack)] if ack.id == snapshot(&list).id()), "{next:?}");
    assert_eq!(lab.staged(), 0);
}
