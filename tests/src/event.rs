//! The client's JSON lines, read back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::Value;

use crate::oracle::PatchId;

/// One line of headless output.
#[derive(Debug, Clone, PartialEq)]
pub struct Event(Value);

impl Event {
    /// `None` for a line that is no JSON object.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        value.is_object().then_some(Self(value))
    }

    pub fn json(&self) -> &Value {
        &self.0
    }

    /// The `type` field.
    pub fn kind(&self) -> &str {
        self.text("type").unwrap_or("")
    }

    pub fn target(&self) -> Option<&str> {
        self.text("target")
    }

    /// True for an event of this type about this target.
    pub fn is(&self, kind: &str, target: &str) -> bool {
        self.kind() == kind && self.target() == Some(target)
    }

    pub fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field)?.as_str()
    }

    /// A whole number that must be there.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.0
            .get(field)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number {field:?} in {}", self.0))
    }

    /// A time in milliseconds that must be there; it may have a fraction.
    #[track_caller]
    pub fn millis(&self, field: &str) -> f64 {
        self.0.get(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("no time {field:?} in {}", self.0))
    }

    pub fn patch_id(&self) -> Option<PatchId> {
        self.text("patch_id").map(|id| PatchId(id.to_owned()))
    }

    /// Strings of a field that must be a list of them.
    #[track_caller]
    pub fn names(&self, field: &str) -> Vec<&str> {
        let list = self.0.get(field).and_then(Value::as_array);
        let list = list.unwrap_or_else(|| panic!("no list {field:?} in {}", self.0));
        list.iter().filter_map(Value::as_str).collect()
    }

    /// Names in `paths`, which holds strings or objects with a `path`.
    pub fn paths(&self) -> Vec<&str> {
        let paths = self.0.get("paths").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        paths.iter().filter_map(|p| p.as_str().or_else(|| p.get("path")?.as_str())).collect()
    }
}

/// Where a target stands after some events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest state, empty before the first.
    pub state: String,
    /// What the server said it holds, by its newest ack or session.
    pub held: Option<PatchId>,
    /// Withheld paths (as written in the events) and the reasons.
    pub withheld: BTreeMap<String, String>,
    pub acks: usize,
}

impl Standing {
    pub fn of(events: &[Event], target: &str) -> Self {
        let mut standing = Self::default();
        for event in events.iter().filter(|e| e.target() == Some(target)) {
            standing.take(event);
        }
        standing
    }

    fn take(&mut self, event: &Event) {
        match event.kind() {
            "state" => self.state = event.text("to").unwrap_or("").to_owned(),
            "session" => self.held = event.patch_id(),
            "acked" => {
                self.held = event.patch_id();
                self.acks += 1;
            }
            "withheld" => self.withheld = withheld_paths(event),
            _ => {}
        }
    }

    pub fn in_sync_with(&self, id: &PatchId) -> bool {
        self.state == "in-sync" && self.held.as_ref() == Some(id)
    }
}

fn withheld_paths(event: &Event) -> BTreeMap<String, String> {
    let field = |path: &Value, name: &str| path.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let paths = event.json().get("paths").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    paths.iter().map(|path| (field(path, "path"), field(path, "reason"))).collect()
}

/// What is wrong with whole headless output: empty when it keeps the promises made for it.
pub fn contract_breaches(stdout: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut events = Vec::new();
    for line in stdout.lines() {
        match Event::parse(line) {
            Some(event) => events.push(event),
            None => breaches.push(format!("no JSON object: {line}")),
        }
    }
    let mut last_seq = None;
    for event in &events {
        let seq = event.json().get("seq").and_then(Value::as_u64);
        if seq.is_none() || seq <= last_seq {
            breaches.push(format!("seq does not increase: {}", event.json()));
        }
        last_seq = seq;
        if event.json().get("v").and_then(Value::as_u64) != Some(1) {
            breaches.push(format!("v is not 1: {}", event.json()));
        }
        if !event.text("ts").is_some_and(is_utc_time) {
            breaches.push(format!("ts is no RFC 3339 time in UTC: {}", event.json()));
        }
    }
    let of_kind = |kind: &str| events.iter().filter(|e| e.kind() == kind).count();
    if events.first().map(Event::kind) != Some("hello") || of_kind("hello") != 1 {
        breaches.push("hello is not the first line, once".to_owned());
    }
    if events.last().map(Event::kind) != Some("summary") || of_kind("summary") != 1 {
        breaches.push("summary is not the last line, once".to_owned());
    }
    breaches
}

/// `2024-01-02T03:04:05Z`, with or without a fraction.
fn is_utc_time(ts: &str) -> bool {
    let Some((seconds, rest)) = ts.strip_suffix('Z').and_then(|ts| ts.split_at_checked(19)) else {
        return false;
    };
    let shape: String = seconds.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let fraction =
        rest.strip_prefix('.').is_some_and(|f| !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit()));
    shape == "0000-00-00T00:00:00" && (rest.is_empty() || fraction)
}

/// A file name as the client writes it in its output: printable UTF-8 stays, a backslash is doubled, control and
/// direction-changing characters become `\u{N}`, bytes that are no UTF-8 become `\xNN`.
pub fn escaped(path: &Path) -> String {
    let mut out = String::new();
    for chunk in OsStr::as_bytes(path.as_os_str()).utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || is_invisible(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &[&str]) -> Vec<Event> {
        lines.iter().map(|line| Event::parse(line).expect("test data parses")).collect()
    }

    #[test]
    fn standing_is_the_newest_word_of_each_kind() {
        let seen = events(&[
            r#"{"type":"state","target":"a@x","from":"connecting","to":"negotiating"}"#,
            r#"{"type":"session","target":"a@x","rung":"diff","patch_id":"11"}"#,
            r#"{"type":"state","target":"a@x","to":"syncing"}"#,
            r#"{"type":"withheld","target":"a@x","paths":[{"path":"f","reason":"too big"}]}"#,
            r#"{"type":"acked","target":"a@x","patch_id":"22"}"#,
            r#"{"type":"acked","target":"a@y","patch_id":"33"}"#,
            r#"{"type":"state","target":"a@x","to":"in-sync"}"#,
        ]);
        let standing = Standing::of(&seen, "a@x");
        assert!(standing.in_sync_with(&PatchId("22".to_owned())));
        assert!(!standing.in_sync_with(&PatchId("11".to_owned())));
        assert_eq!(standing.withheld["f"], "too big");
        assert_eq!(standing.acks, 1);
        assert_eq!(Standing::of(&seen, "a@z"), Standing::default());
    }

    #[test]
    fn a_session_that_finds_everything_in_place_needs_no_ack() {
        let seen = events(&[
            r#"{"type":"session","target":"a@x","rung":"none","patch_id":"11"}"#,
            r#"{"type":"state","target":"a@x","to":"in-sync"}"#,
        ]);
        assert!(Standing::of(&seen, "a@x").in_sync_with(&PatchId("11".to_owned())));
    }

    #[test]
    fn the_contract_holds_for_good_output_and_for_no_other() {
        let hello = r#"{"v":1,"seq":1,"ts":"2024-01-02T03:04:05.678Z","type":"hello"}"#;
        let summary = r#"{"v":1,"seq":2,"ts":"2024-01-02T03:04:05Z","type":"summary"}"#;
        assert_eq!(contract_breaches(&format!("{hello}\n{summary}\n")), Vec::<String>::new());
        assert_eq!(contract_breaches(&format!("{summary}\n{hello}\n")).len(), 3);
        assert_eq!(contract_breaches(&format!("{hello}\nnoise\n{summary}\n")).len(), 1);
        assert_eq!(contract_breaches(&format!("{hello}\n")).len(), 1);
        assert_eq!(contract_breaches("").len(), 2);
    }

    #[test]
    fn times_must_be_utc() {
        assert!(is_utc_time("2024-01-02T03:04:05Z"));
        assert!(is_utc_time("2024-01-02T03:04:05.123456789Z"));
        assert!(!is_utc_time("2024-01-02T03:04:05+02:00"));
        assert!(!is_utc_time("yesterday"));
    }

    #[test]
    fn odd_names_are_escaped() {
        let name = |bytes: &'static [u8]| escaped(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(name(b"a b\xff\\"), "a b\\xff\\\\");
        assert_eq!(name(b"new\nline"), "new\\u{a}line");
        assert_eq!(name("n\u{e9}".as_bytes()), "n\u{e9}");
    }
}
