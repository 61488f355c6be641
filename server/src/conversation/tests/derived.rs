//! Contents that come ahead of their patch, and such as are made from managed files.

use std::os::unix::fs::symlink;

use gitsync_core::wire::{Base, Encoding};

use super::*;

const OLD: &str = "old-content-of-some-length-0123456789";

fn raw(text: &str) -> Chunk {
    Chunk::encode(id_of(text), text.len() as u64, 0, Bytes::copy_from_slice(text.as_bytes()))
}

fn base(p: &str, content: &str, offset: u64, length: u64) -> Base {
    Base { path: path(p), id: id_of(content), offset, length }
}

impl Lab {
    fn ahead(&mut self, contents: Vec<Chunk>) {
        let weight: u64 = contents.iter().map(Chunk::weight).sum();
        let next = self.talk.handle(ToServer::Ahead { contents });
        assert!(matches!(next.replies[..], [ToClient::Taken { weight: w }] if w == weight), "{next:?}");
    }

    /// A patch diff with these contents instead of whole ones; on refusal what is held stays.
    fn send_with(&mut self, list: &str, contents: Vec<Chunk>) -> Result<Ack, Refusal> {
        let before = self.held.clone();
        let ToServer::Patch(header, mut frame) = self.message(list) else { panic!("a patch") };
        frame.contents = contents;
        match &self.talk.handle(ToServer::Patch(header, frame)).replies[..] {
            [ToClient::Ack(ack)] => Ok(ack.clone()),
            [ToClient::Refusal(refusal)] => {
                self.held = before;
                Err(refusal.clone())
            }
            other => panic!("expected an answer, not {other:?}"),
        }
    }

    fn missing(&mut self, list: &str, contents: Vec<Chunk>) {
        let refusal = self.send_with(list, contents).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::ContentMissing, "{refusal:?}");
    }
}

#[test]
fn what_came_ahead_stays_until_a_patch_has_used_it() {
    let mut lab = Lab::with("a=1");
    lab.ahead(vec![raw("new"), raw("later"), raw("never")]);
    // A patch that needs none of it, and one that is refused, leave it alone.
    lab.send("a=2");
    lab.missing("a=2 b=new c=nowhere", vec![]);
    assert_eq!(lab.staged(), 3);
    let ack = lab.send_with("a=2 b=new d=new", vec![]).unwrap();
    assert_eq!((ack.written, lab.staged()), (2, 2));
    lab.talk.handle(forget(vec![id_of("never")]));
    assert_eq!(lab.staged(), 1);
    lab.missing("a=2 b=never d=new", vec![]);
    // It can come again, with the patch.
    lab.send_with("a=2 b=never d=later", vec![raw("never")]).unwrap();
    assert_eq!((fs::read(lab.at("d")).unwrap(), lab.staged()), (b"later".to_vec(), 0));
}

#[test]
fn pieces_ahead_and_pieces_of_a_patch_do_not_mix() {
    let mut lab = Lab::with("a=1");
    let (text, other) = ("x".repeat(10), "other");
    let half = |offset: usize| {
        let bytes = Bytes::copy_from_slice(&text.as_bytes()[offset..offset + 5]);
        Chunk { offset: offset as u64, ..Chunk::encode(id_of(&text), 10, 0, bytes) }
    };
    lab.ahead(vec![half(0)]);
    // In the middle of it a whole patch.
    lab.send("a=2");
    lab.ahead(vec![half(5)]);
    lab.send_with(&format!("a=2 b={text}"), vec![]).unwrap();
    // One that is begun gives up the one before, whose other pieces then mean nothing.
    lab.send("a=2");
    lab.ahead(vec![half(0), raw(other), half(5)]);
    assert_eq!(lab.staged(), 1);
    // As does one that is forgotten half way.
    lab.ahead(vec![half(0)]);
    lab.talk.handle(forget(vec![id_of(&text)]));
    assert_eq!(lab.staged(), 1);
    lab.missing(&format!("a=2 b={text}"), vec![]);
}

#[test]
fn a_content_can_be_made_from_the_file_it_replaces() {
    let mut lab = Lab::with(&format!("a={OLD}"));
    let new = format!("{}-in-the-middle-{}", &OLD[..20], &OLD[20..]);
    let (id, size) = (id_of(&new), new.len() as u64);
    let middle = Bytes::copy_from_slice(&new.as_bytes()[20..size as usize - 17]);
    let parts = |p: &str| {
        let whole = base(p, OLD, 0, OLD.len() as u64);
        vec![
            Chunk::copy(id, size, 0, base(p, OLD, 0, 20)),
            Chunk::encode_from(id, size, 20, middle.clone(), whole, OLD.as_bytes()),
            Chunk::copy(id, size, 20 + middle.len() as u64, base(p, OLD, 20, 17)),
        ]
    };
    // Ahead or with the patch, for the path itself or another.
    lab.ahead(parts("a"));
    lab.send_with(&format!("a={OLD} b={new}"), vec![]).unwrap();
    lab.send_with(&format!("a={new} b={OLD}"), vec![]).unwrap();
    lab.send(&format!("a={OLD}"));
    let ack = lab.send_with(&format!("a={new}"), parts("a")).unwrap();
    assert_eq!((ack.written, fs::read_to_string(lab.at("a")).unwrap()), (1, new));
    assert_eq!(lab.staged(), 0);
}

#[test]
fn a_base_that_is_not_what_it_was_makes_nothing() {
    let new = format!("{OLD}!");
    let (id, size, old_len) = (id_of(&new), new.len() as u64, OLD.len() as u64);
    let last = || Chunk { offset: old_len, ..Chunk::encode(id, size, 0, Bytes::from_static(b"!")) };
    let from = |base: Base| vec![Chunk::copy(id, size, 0, base), last()];
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), OLD).unwrap();

    type Harm<'a> = Box<dyn Fn(&Lab) -> Base + 'a>;
    let good = || base("d/a", OLD, 0, old_len);
    let harms: Vec<(&str, Harm<'_>)> = vec![
        ("another content", Box::new(|_| base("d/a", "other", 0, old_len))),
        ("another path", Box::new(|_| base("d/b", OLD, 0, old_len))),
        ("a directory", Box::new(|_| base("d", OLD, 0, old_len))),
        ("beyond the end", Box::new(|_| base("d/a", OLD, 1, old_len))),
        (
            "gone",
            Box::new(|lab| {
                fs::remove_file(lab.at("d/a")).unwrap();
                good()
            }),
        ),
        (
            "rewritten",
            Box::new(|lab| {
                fs::write(lab.at("d/a"), OLD.replace('o', "0")).unwrap();
                good()
            }),
        ),
        (
            "shorter",
            Box::new(|lab| {
                fs::write(lab.at("d/a"), "o").unwrap();
                good()
            }),
        ),
        (
            "a link",
            Box::new(|lab| {
                fs::remove_file(lab.at("d/a")).unwrap();
                symlink(outside.path().join("secret"), lab.at("d/a")).unwrap();
                good()
            }),
        ),
        (
            "below a link",
            Box::new(|lab| {
                fs::remove_dir_all(lab.at("d")).unwrap();
                fs::rename(outside.path().join("secret"), outside.path().join("a")).unwrap();
                symlink(outside.path(), lab.at("d")).unwrap();
                good()
            }),
        ),
    ];
    for (what, harm) in harms {
        let mut lab = Lab::with(&format!("d/a={OLD} d/b=b"));
        let base = harm(&lab);
        let list = format!("d/a={OLD} d/b=b c={new}");
        lab.missing(&list, from(base.clone()));
        lab.ahead(from(base));
        lab.missing(&list, vec![]);
        assert!(!lab.at("c").exists(), "{what}");
        assert_eq!(lab.staged(), 0, "{what}");
        lab.send(&list);
        assert_eq!(fs::read_to_string(lab.at("c")).unwrap(), new, "{what}");
    }
}

#[test]
fn a_wrong_result_is_a_missing_content_only_if_a_base_had_a_part_in_it() {
    let mut lab = Lab::with(&format!("a={OLD}"));
    let (id, size) = (id_of("another-text-of-same-length-012345678"), OLD.len() as u64);
    let list = format!("a={OLD} b=another-text-of-same-length-012345678");
    lab.missing(&list, vec![Chunk::copy(id, size, 0, base("a", OLD, 0, size))]);
    let whole = Chunk::encode(id, size, 0, Bytes::from_static(OLD.as_bytes()));
    let refusal = lab.send_with(&list, vec![whole]).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::PatchInvalid);
    // A damaged piece against a base is the base's fault as far as anybody can tell.
    let zstd_from = Encoding::ZstdFrom(base("a", OLD, 0, size));
    let damaged =
        Chunk { encoding: zstd_from, data: Bytes::from_static(b"xx"), ..raw(&list[OLD.len() + 5..]) };
    lab.missing(&list, vec![damaged]);
}

#[test]
fn copying_more_than_the_content_has_is_refused() {
    let mut lab = Lab::with(&format!("a={OLD}"));
    let (id, half) = (id_of("half"), 4);
    let too_long = Chunk { offset: 0, ..Chunk::copy(id, half, 0, base("a", OLD, 0, OLD.len() as u64)) };
    let refusal = lab.send_with(&format!("a={OLD} b=half"), vec![too_long]).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::PatchInvalid, "{refusal:?}");
    lab.send(&format!("a={OLD} b=half"));
}
