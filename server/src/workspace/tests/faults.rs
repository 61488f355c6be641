//! A file system that fails, lies or dies on purpose, and what holds all the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Fails the `nth` call that writes, once, with `errno`; counts them all.
#[derive(Debug, Default)]
pub(super) struct FaultFs {
    os: OsFs,
    calls: AtomicUsize,
    fault: Mutex<Option<(usize, Errno, Repeat)>>,
    pub(super) pretend: Mutex<Pretend>,
    /// Calls that move names, in their order.
    moves: Mutex<Vec<&'static str>>,
    /// The process dies of the next removal.
    deadly: AtomicBool,
    /// No new name comes where another directory's files cannot be moved to, as with a quota of its own.
    walled: Mutex<bool>,
}

/// What a twin says instead of the truth.
#[derive(Debug, Clone, Default)]
pub(super) struct Pretend {
    pub(super) space: Option<Space>,
    pub(super) boot_id: Option<&'static str>,
    pub(super) folding: Option<Folding>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Repeat {
    Once,
    /// Every later call fails too, as on a full disk.
    Always,
}

impl FaultFs {
    pub(super) fn pretending(pretend: Pretend) -> Self {
        Self { pretend: Mutex::new(pretend), ..Self::default() }
    }

    pub(super) fn arm(&self, fault: Option<(usize, Errno, Repeat)>) -> usize {
        *self.fault.lock().unwrap() = fault;
        self.calls.swap(0, Ordering::Relaxed)
    }

    fn gate(&self) -> rustix::io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match *self.fault.lock().unwrap() {
            Some((nth, errno, repeat)) if call == nth || (repeat == Repeat::Always && call > nth) => {
                Err(errno)
            }
            _ => Ok(()),
        }
    }
}

type Fd<'a> = BorrowedFd<'a>;
type Io<T> = rustix::io::Result<T>;

impl WorkspaceFs for FaultFs {
    fn open_dir(&self, at: Fd<'_>, path: &[u8]) -> Io<OwnedFd> {
        self.os.open_dir(at, path)
    }
    fn open_file(&self, at: Fd<'_>, name: &[u8]) -> Io<OwnedFd> {
        self.os.open_file(at, name)
    }
    fn create(&self, at: Fd<'_>, name: &[u8]) -> Io<OwnedFd> {
        self.gate()?;
        self.os.create(at, name)
    }
    fn append(&self, at: Fd<'_>, name: &[u8]) -> Io<OwnedFd> {
        self.os.append(at, name)
    }
    fn read(&self, file: Fd<'_>, buffer: &mut [u8]) -> Io<usize> {
        self.os.read(file, buffer)
    }
    fn read_at(&self, file: Fd<'_>, buffer: &mut [u8], offset: u64) -> Io<usize> {
        self.os.read_at(file, buffer, offset)
    }
    fn write_all(&self, file: Fd<'_>, bytes: &[u8]) -> Io<()> {
        if let Err(errno) = self.gate() {
            // Half of it gets there.
            self.os.write_all(file, &bytes[..bytes.len() / 2])?;
            return Err(errno);
        }
        self.os.write_all(file, bytes)
    }
    fn stat(&self, file: Fd<'_>) -> Io<Stat> {
        self.gate()?;
        self.os.stat(file)
    }
    fn stat_at(&self, at: Fd<'_>, name: &[u8]) -> Io<Stat> {
        self.gate()?;
        self.os.stat_at(at, name)
    }
    fn symlink(&self, target: &[u8], at: Fd<'_>, name: &[u8]) -> Io<()> {
        self.gate()?;
        self.os.symlink(target, at, name)
    }
    fn read_link(&self, at: Fd<'_>, name: &[u8]) -> Io<Vec<u8>> {
        self.os.read_link(at, name)
    }
    fn rename(&self, from: Fd<'_>, name: &[u8], to: Fd<'_>, new: &[u8]) -> Io<()> {
        self.gate()?;
        self.os.rename(from, name, to, new)
    }
    fn rename_new(&self, from: Fd<'_>, name: &[u8], to: Fd<'_>, new: &[u8]) -> Io<()> {
        self.gate()?;
        self.moves.lock().unwrap().push("rename");
        if *self.walled.lock().unwrap() {
            return Err(Errno::XDEV);
        }
        self.os.rename_new(from, name, to, new)
    }
    fn exchange(&self, a: Fd<'_>, name: &[u8], b: Fd<'_>, other: &[u8]) -> Io<()> {
        self.gate()?;
        self.moves.lock().unwrap().push("exchange");
        self.os.exchange(a, name, b, other)
    }
    fn unlink(&self, at: Fd<'_>, name: &[u8]) -> Io<()> {
        self.gate()?;
        assert!(!self.deadly.swap(false, Ordering::Relaxed), "the death of a test");
        self.moves.lock().unwrap().push("unlink");
        self.os.unlink(at, name)
    }
    fn mkdir(&self, at: Fd<'_>, name: &[u8], permissions: u32) -> Io<()> {
        self.gate()?;
        self.os.mkdir(at, name, permissions)
    }
    fn rmdir(&self, at: Fd<'_>, name: &[u8]) -> Io<()> {
        self.gate()?;
        self.os.rmdir(at, name)
    }
    fn list(&self, dir: Fd<'_>) -> Io<Vec<Vec<u8>>> {
        self.os.list(dir)
    }
    fn chmod(&self, file: Fd<'_>, permissions: u32) -> Io<()> {
        self.gate()?;
        self.os.chmod(file, permissions)
    }
    fn touch(&self, file: Fd<'_>) -> Io<()> {
        self.gate()?;
        self.os.touch(file)
    }
    fn sync(&self, _file: Fd<'_>) -> Io<()> {
        self.gate()
    }
    fn sync_dir(&self, _dir: Fd<'_>) -> Io<()> {
        self.gate()
    }
    fn sync_fs(&self, _dir: Fd<'_>) -> Io<()> {
        Ok(())
    }
    fn space(&self, dir: Fd<'_>) -> Io<Space> {
        let pretend = self.pretend.lock().unwrap().space;
        pretend.map_or_else(|| self.os.space(dir), Ok)
    }
    fn boot_id(&self) -> String {
        let pretend = self.pretend.lock().unwrap().boot_id;
        pretend.map_or_else(|| self.os.boot_id(), str::to_owned)
    }
    fn folding(&self, dir: Fd<'_>) -> Io<Folding> {
        let pretend = self.pretend.lock().unwrap().folding;
        pretend.map_or_else(|| self.os.folding(dir), Ok)
    }
}

#[test]
fn a_kill_between_renames_and_removals_leaves_nothing_to_keep() {
    let fs_under = Arc::new(FaultFs::default());
    let mut room = Room::over(fs_under.clone(), TempDir::new().unwrap(), &options());
    room.set("a=1 b=1 d/c=1 gone=1");
    let next = files("a=2 b=2 d/c=2 new=2");
    fs_under.deadly.store(true, Ordering::Relaxed);
    let killed = catch_unwind(AssertUnwindSafe(|| room.try_apply(&next)));
    assert!(killed.is_err());
    // All renames have happened.
    assert_eq!(on_disk(&room.at("")), next);
    let report = room.reopen();
    assert_eq!((report.kept, report.drifted, report.missing), (vec![], vec![], vec![]));
    assert_eq!(room.held(), snapshot(&next).id());
    assert_eq!(room.recovered(), []);
    assert!(stage_is_empty(&room.at("")));
}

/// Whatever two threads make and give up at the same time.
#[test]
fn many_new_files_that_are_refused_leave_no_directory() {
    let fs_under = Arc::new(FaultFs::default());
    let mut room = Room::over(fs_under.clone(), TempDir::new().unwrap(), &options());
    let items: Vec<String> =
        (0..3_000).map(|n| format!("d/e{:02}/f{}/g{n:04}=x{n}", n % 40, n % 3)).collect();
    let next = files(&items.join(" "));
    *fs_under.walled.lock().unwrap() = true;
    let applied = room.try_apply(&next).unwrap();
    assert_eq!((applied.written, applied.refused.len()), (0, 3_000));
    assert_eq!(empty_dirs(&room.at("")), BTreeSet::new());
    assert!(!room.at("d").exists());
    *fs_under.walled.lock().unwrap() = false;
    let applied = room.try_apply(&next).unwrap();
    assert_eq!((applied.written, applied.refused), (3_000, vec![]));
    assert_eq!(on_disk(&room.at("")), next);
}

/// A tree is neither the old one nor the new one for as short as can be.
#[test]
fn old_files_go_after_the_last_new_one_has_come() {
    let fs_under = Arc::new(FaultFs::default());
    let mut room = Room::over(fs_under.clone(), TempDir::new().unwrap(), &options());
    room.set("a=1 b=1 d/c=1 gone=1");
    fs_under.moves.lock().unwrap().clear();
    room.set("a=2 b=2 d/c=2 new=2");
    let moves = std::mem::take(&mut *fs_under.moves.lock().unwrap());
    let (come, go) = moves.split_at(5);
    assert_eq!(come.iter().filter(|call| **call == "exchange").count(), 3, "{moves:?}");
    assert_eq!(
        (come.iter().filter(|call| **call == "rename").count(), go),
        (2, &["unlink"; 4][..]),
        "{moves:?}"
    );
    assert!(stage_is_empty(&room.at("")));
}

/// One patch with every kind of step, foreign and drifted files in its way, failing at every call in turn:
/// what is held is on disk, foreign bytes are somewhere, and the next session converges.
#[test]
fn a_fault_at_any_call_leaves_the_truth() {
    for (errno, repeat) in
        [(Errno::IO, Repeat::Once), (Errno::NOSPC, Repeat::Once), (Errno::NOSPC, Repeat::Always)]
    {
        let mut nth = 0;
        while fault_run(nth, errno, repeat) {
            nth += 1;
        }
        assert!(nth > 40, "only {nth} calls");
    }
}

/// False once there are fewer than `nth` calls.
fn fault_run(nth: usize, errno: Errno, repeat: Repeat) -> bool {
    let run = format!("call {nth}, {errno}, {repeat:?}");
    let fs_under = Arc::new(FaultFs::default());
    let mut room = Room::over(fs_under.clone(), TempDir::new().unwrap(), &options());
    room.set("a=1 b=1 +c=1 @l=1 d/e=1 g/h/i=1 z=1 drifted=1");
    fs::write(room.at("new"), "foreign1").unwrap();
    fs::write(room.at("drifted"), "foreign2").unwrap();
    fs::write(room.at("n"), "foreign3").unwrap();
    fs::write(room.at("z"), "foreign4").unwrap();
    let next = files("a=2 b=2 c=1 @l=2 d=1 new=3 n/m=4 drifted=5");

    fs_under.arm(Some((nth, errno, repeat)));
    let applied = room.try_apply(&next);
    let calls = fs_under.arm(None);
    check_truth(&room, &run);
    drop(applied);

    // The same session goes on, or a new one begins.
    if nth & 1 == 0 {
        room.reopen();
        check_truth(&room, &run);
    }
    room.workspace().discard_stage();
    let again = room.try_apply(&next).unwrap();
    assert_eq!((again.refused, again.id), (vec![], snapshot(&next).id()), "{run}");
    // A drifted file found when opening is foreign from then on, and stays where it is.
    let mut disk = on_disk(&room.at(""));
    let z = disk.remove("z");
    assert_eq!(disk, next, "{run}");
    let report = room.reopen();
    assert_eq!(room.held(), snapshot(&next).id(), "{run}: {report:?}");
    let mut recovered: BTreeSet<String> = room.recovered().into_iter().map(|(_, text)| text).collect();
    recovered.extend(z.map(|(_, bytes)| String::from_utf8(bytes).unwrap()));
    for n in 1..=4 {
        assert!(recovered.contains(&format!("foreign{n}")), "{run}: foreign{n} is lost, {recovered:?}");
    }
    assert!(stage_is_empty(&room.at("")), "{run}");
    calls > nth
}

/// Everything held is on disk as it is held, but for what drifted before.
fn check_truth(room: &Room, run: &str) {
    let disk = on_disk(&room.at(""));
    room.workspace.as_ref().unwrap().held().root().for_each_leaf(&mut |path, leaf| {
        let (mode, bytes) =
            disk.get(&path.to_string()).unwrap_or_else(|| panic!("{run}: {path} is held but gone"));
        if !bytes.starts_with(b"foreign") {
            assert_eq!((*mode, ContentId::of(SHA1, bytes)), (leaf.mode, leaf.id), "{run}: {path}");
        }
    });
}
