//! What is staged, and what is left of it.

use super::*;

#[test]
fn staged_contents_are_verified() {
    let mut room = Room::new();
    let id = ContentId::of(SHA1, b"hello");
    let workspace = room.workspace();
    assert!(matches!(workspace.stage_bytes(id, b"hellO"), Err(StageError::WrongContent { .. })));
    let mut writer = workspace.stage(id, 5).unwrap();
    writer.write(b"hel").unwrap();
    assert!(matches!(writer.write(b"loo"), Err(StageError::TooLong { .. })));
    assert!(matches!(workspace.finish(writer), Err(StageError::TooShort { written: 3, .. })));
    let mut writer = workspace.stage(id, 5).unwrap();
    writer.write(b"hel").unwrap();
    drop(writer);
    assert!(stage_is_empty(&room.at("")));
    let workspace = room.workspace();
    let mut writer = workspace.stage(id, 5).unwrap();
    writer.write(b"hel").unwrap();
    writer.write(b"lo").unwrap();
    workspace.finish(writer).unwrap();
    assert!(workspace.contains(&id));
    workspace.discard_stage();
    assert!(!workspace.contains(&id));
    assert!(stage_is_empty(&room.at("")));
}

#[test]
fn a_content_is_staged_once() {
    let mut room = Room::new();
    let id = ContentId::of(SHA1, b"");
    let workspace = room.workspace();
    workspace.stage_bytes(id, b"").unwrap();
    workspace.keep_ahead(id);
    workspace.stage_bytes(id, b"").unwrap();
    workspace.forget([&id]);
    workspace.stage.drop_one(&id);
    assert!(!workspace.has_staged(&id), "it was there twice");
    assert!(stage_is_empty(&room.at("")));
}

#[test]
fn a_patch_to_what_is_held_uses_up_what_came_ahead() {
    let mut room = Room::with("a=1");
    let id = ContentId::of(SHA1, b"1");
    let Room { workspace, fence, .. } = &mut room;
    let workspace = workspace.as_mut().unwrap();
    workspace.stage_bytes(id, b"1").unwrap();
    workspace.keep_ahead(id);
    let held = workspace.held().id();
    let kind = ChangeKind::Put { mode: Mode::File, id, size: 1 };
    let changes = [Change { path: path("a"), kind }];
    workspace.apply(held, held, 7, &changes, fence).unwrap();
    workspace.discard_stage();
    assert!(!workspace.has_staged(&id));
}

#[test]
fn old_files_a_power_cut_leaves_in_the_stage_are_removed_and_others_kept() {
    let (mut room, twin) = Room::checkpointed("a=1 b=2 c=3");
    // Swapped, not yet removed, and no record of it: the log was never written out.
    let stage = fs::read_dir(room.state("stage")).unwrap().next().unwrap().unwrap().path();
    for (p, slot) in [("a", "u7"), ("b", "d8")] {
        fs::rename(room.at(p), stage.join(slot)).unwrap();
        fs::write(room.at(p), "new").unwrap();
    }
    fs::write(stage.join("d9"), "foreign").unwrap();
    twin.pretend.lock().unwrap().boot_id = Some("two");
    let report = room.reopen();
    assert_eq!((report.kept, report.drifted), (vec![path("d9")], vec![path("a"), path("b")]));
    assert_eq!(room.recovered(), [("d9".to_owned(), "foreign".to_owned())]);
    assert!(stage_is_empty(&room.at("")));
}

/// So many that they lie in several directories.
fn stage_many(room: &mut Room) -> Vec<ContentId> {
    let texts = (0..600).map(|n| format!("content {n}").into_bytes());
    let stage = |text: Vec<u8>| {
        let id = ContentId::of(SHA1, &text);
        room.workspace().stage_bytes(id, &text).unwrap();
        id
    };
    texts.map(stage).collect()
}

/// The epoch's own directory.
fn stage_of(room: &Room) -> PathBuf {
    fs::read_dir(room.state("stage")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn many_contents_share_directories_which_go_with_them() {
    let mut room = Room::new();
    let ids = stage_many(&mut room);
    let mut names: Vec<_> =
        fs::read_dir(stage_of(&room)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name.to_str().unwrap().starts_with('b'));
    assert_eq!(names.len(), 2);
    // One that waits for its patch keeps its place.
    room.workspace().keep_ahead(ids[599]);
    room.workspace().discard_stage();
    assert!(room.workspace().has_staged(&ids[599]));
    assert!(!stage_is_empty(&room.at("")));
    room.workspace().forget([&ids[599]]);
    room.workspace().discard_stage();
    assert!(stage_is_empty(&room.at("")));
    // And again, in directories made anew.
    stage_many(&mut room);
    room.workspace().discard_stage();
    assert!(stage_is_empty(&room.at("")));
}

#[test]
fn many_contents_of_a_session_that_died_are_removed_and_what_was_displaced_is_kept() {
    let mut room = Room::with("a=1");
    stage_many(&mut room);
    let stage = stage_of(&room);
    // A file somebody made, displaced by a swap that no record tells of.
    fs::write(stage.join("b1/u9999"), "foreign").unwrap();
    fs::set_permissions(stage.join("b1/u9999"), fs::Permissions::from_mode(0o644)).unwrap();
    let report = room.reopen();
    assert_eq!(report.kept, [path("u9999")]);
    assert_eq!(room.recovered(), [("u9999".to_owned(), "foreign".to_owned())]);
    room.expect("a=1");
}

/// A swap that meets a directory takes it into the slot, and puts it back: unless it dies first.
#[test]
fn a_directory_somebody_made_is_kept_whole_wherever_in_the_stage_it_was_left() {
    for slot in ["u9998", "b1/u9998", "b1/b7"] {
        let mut room = Room::with("a=1");
        stage_many(&mut room);
        let left = stage_of(&room).join(slot);
        fs::create_dir(&left).unwrap();
        fs::write(left.join("secret"), "foreign").unwrap();
        fs::set_permissions(left.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        room.reopen();
        let name = format!("{}/secret", Path::new(slot).file_name().unwrap().to_str().unwrap());
        assert_eq!(room.recovered(), [(name, "foreign".to_owned())], "{slot}");
    }
}

/// So many that threads share them, with something of somebody's in the way here and there.
#[test]
fn many_new_files_at_once() {
    let list = |text: &str| -> String {
        let items = (0..3_000).map(|n| format!("d{:02}/e{}/f{n:04}={text}{n}", n % 40, n % 3));
        items.collect::<Vec<_>>().join(" ")
    };
    let mut room = Room::new();
    for n in (0..3_000).step_by(250) {
        let file = room.at(&format!("d{:02}/e{}/f{n:04}", n % 40, n % 3));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("foreign {n}")).unwrap();
    }
    // A file where a directory is needed, and a directory with something in it where a file is.
    fs::write(room.at("d39"), "in the way").unwrap();
    fs::create_dir_all(room.at("d00/e0/f0120/x")).unwrap();
    fs::write(room.at("d00/e0/f0120/x/y"), "stays").unwrap();
    let next = files(&list("n"));
    let applied = room.try_apply(&next).unwrap();
    let refused: Vec<String> = applied.refused.iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(refused, ["d00/e0/f0120"]);
    assert_eq!((applied.written, applied.kept.len()), (2_999, 13));
    assert!(applied.kept.is_sorted());
    let mut disk = on_disk(&room.at(""));
    assert_eq!(disk.remove("d00/e0/f0120/x/y").unwrap().1, b"stays");
    let mut there = next.clone();
    there.remove("d00/e0/f0120");
    assert_eq!(disk, there);
    assert_eq!(room.held(), snapshot(&there).id());
    assert_eq!(room.recovered().len(), 13);
    room.workspace().discard_stage();
    assert!(stage_is_empty(&room.at("")));
    assert_eq!(room.reopen().rehashed, 0);
}
