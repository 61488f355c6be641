//! The observer on real repositories: what it reports after git and other programs did their work.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;
use crate::model::WithheldReason;

/// Nothing here takes longer on a working machine; a missed event would take until the safety scan.
const LIMIT: Duration = Duration::from_secs(20);

struct Lab {
    dir: TempDir,
    observer: Option<Observer>,
    reports: Receiver<Report>,
    snapshot: Option<Snapshot>,
    preview: Option<Snapshot>,
    unfinished: bool,
    brake: Option<Missing>,
    held_back: u64,
    notes: Vec<String>,
    uprooted: bool,
    /// What the first scan looked at, and what of that it read.
    scanned: Option<(u64, u64)>,
}

impl Lab {
    /// A repository with one commit of `files`, observed.
    fn new(files: &[(&str, &str)], selection: Selection) -> Self {
        let mut lab = Self::unobserved(files);
        lab.observe(selection, None);
        lab
    }

    /// A repository with one commit of `files`.
    fn unobserved(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (_sender, reports) = mpsc::channel();
        let lab = Self {
            dir,
            observer: None,
            reports,
            snapshot: None,
            preview: None,
            unfinished: false,
            brake: None,
            held_back: 0,
            notes: Vec::new(),
            uprooted: false,
            scanned: None,
        };
        fs::create_dir(lab.root()).unwrap();
        lab.git(&["init", "--quiet", "--initial-branch=main"]);
        for (path, text) in files {
            lab.write(path, text);
        }
        lab.git(&["add", "--all"]);
        lab.git(&["commit", "--quiet", "--message=first"]);
        lab
    }

    /// Starts to observe, as if for the first time.
    fn observe(&mut self, selection: Selection, cache_dir: Option<&Path>) {
        self.observer = None;
        let (sender, reports) = mpsc::channel();
        let publish = Box::new(move |report| {
            let _ = sender.send(report);
        });
        (self.reports, self.snapshot, self.scanned) = (reports, None, None);
        self.observer = Some(Observer::start(&self.root(), selection, cache_dir, publish).unwrap());
    }

    /// Waits until no file's time is so young that its signature says nothing.
    fn let_stamps_settle(&self) {
        let (_, newest) = self.newest_ctime(&self.root());
        while newest.elapsed().unwrap_or_default() <= crate::repo::disk::RACY {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn newest_ctime(&self, dir: &Path) -> (usize, SystemTime) {
        let mut newest = (0, SystemTime::UNIX_EPOCH);
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.path().symlink_metadata().unwrap();
            let ctime = Duration::new(metadata.ctime() as u64, metadata.ctime_nsec() as u32);
            newest = (newest.0 + 1, newest.1.max(SystemTime::UNIX_EPOCH + ctime));
            if metadata.is_dir() && entry.file_name() != ".git" {
                let below = self.newest_ctime(&entry.path());
                newest = (newest.0 + below.0, newest.1.max(below.1));
            }
        }
        newest
    }

    fn plain(files: &[(&str, &str)]) -> Self {
        Self::new(files, Selection::default())
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn git(&self, args: &[&str]) {
        let status = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(args)
            .current_dir(self.root())
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .status()
            .unwrap();
        assert!(status.success(), "git {args:?}");
    }

    /// Brings the files back without taking the index's lock.
    fn git_plumbing_checkout(&self) {
        fs::remove_file(self.path(".git/index.lock")).unwrap();
        self.git(&["checkout", "--", "."]);
    }

    fn ask(&self, request: Request) {
        self.observer.as_ref().unwrap().request(request);
    }

    /// Takes reports in until `done` is true of what is known.
    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            let left = end.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(Report::Update(update)) => {
                    self.snapshot = Some(update.snapshot);
                    self.unfinished = update.unfinished;
                    self.uprooted = false;
                }
                Ok(Report::Preview(preview)) => self.preview = Some(preview),
                Ok(Report::Brake(brake)) => self.brake = brake,
                Ok(Report::HeldBack { changes, .. }) => self.held_back = changes,
                Ok(Report::Note(note)) => self.notes.push(note),
                Ok(Report::Uprooted(_)) => self.uprooted = true,
                Ok(Report::Scanned { files, hashed }) => self.scanned = Some((files, hashed)),
                Ok(_) => {}
                Err(_) => panic!("never came: {what}; there is {:?}", self.names()),
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        if let Some(snapshot) = &self.snapshot {
            snapshot.root().for_each_leaf(&mut |path, _| names.push(path.to_string()));
        }
        names
    }

    fn wait_names(&mut self, expected: &[&str]) {
        self.wait(&format!("{expected:?}"), |lab| lab.snapshot.is_some() && lab.names() == expected);
    }

    fn content_is(&self, path: &str, text: &str) -> bool {
        let id = crate::model::ContentId::of(HashKind::Sha1, text.as_bytes());
        let leaf = self.snapshot.as_ref().and_then(|s| s.root().get(&rel(path)).copied());
        leaf.is_some_and(|leaf| leaf.id == id)
    }

    fn withheld(&self, path: &str) -> Option<WithheldReason> {
        self.snapshot.as_ref()?.withheld().get(&rel(path)).cloned()
    }
}

fn rel(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

#[test]
fn a_large_file_is_read_beside_the_others_and_told_of_as_unfinished() {
    let mut lab = Lab::plain(&[("a", "1")]);
    lab.wait_names(&["a"]);
    let large = "0123456789abcdef".repeat(4 << 20);
    lab.write("large", &large);
    lab.wait("word that there is more", |lab| lab.unfinished);
    lab.write("a", "2");
    lab.wait("the edit", |lab| lab.content_is("a", "2"));
    lab.wait("the large file", |lab| !lab.unfinished && lab.content_is("large", &large));
    // Changed while it is read, again and again: the last state is what counts.
    for end in ["x", "y", "z"] {
        lab.write("large", &format!("{large}{end}"));
    }
    let last = format!("{large}z");
    lab.wait("the last state", |lab| !lab.unfinished && lab.content_is("large", &last));
    lab.write("large", &large);
    fs::remove_file(lab.path("large")).unwrap();
    lab.wait("its end", |lab| !lab.unfinished && lab.names() == ["a"]);
}

#[test]
fn what_git_writes_under_its_lock_is_read_early_and_told_of_when_it_is_done() {
    let mut lab = Lab::plain(&[("a", "1"), ("b", "1")]);
    lab.wait_names(&["a", "b"]);
    lab.write(".git/index.lock", "");
    lab.write("a", "2");
    lab.wait("the preview", |lab| lab.preview.is_some());
    assert!(lab.content_is("a", "1"), "no state to be in");
    assert_eq!(lab.preview.as_ref().unwrap().root().get(&rel("a")).unwrap().signature.size, 1);
    fs::remove_file(lab.path("b")).unwrap();
    fs::remove_file(lab.path(".git/index.lock")).unwrap();
    lab.wait("both at once", |lab| lab.content_is("a", "2"));
    assert_eq!(lab.names(), ["a"]);
}

/// Git changes nothing, and its lock stays: no event comes when the hold has lasted as long as it may.
#[test]
fn what_was_met_while_saves_were_held_back_is_published_when_that_ends() {
    let mut lab = Lab::plain(&[("a", "1")]);
    lab.wait_names(&["a"]);
    let large = "0123456789abcdef".repeat(8 << 20);
    lab.write("large", &large);
    lab.wait("word that there is more", |lab| lab.unfinished);
    lab.write(".git/index.lock", "");
    lab.wait("the large file", |lab| !lab.unfinished && lab.content_is("large", &large));
}

#[test]
fn a_tree_that_changed_shape_under_the_look_is_looked_at_again_and_then_left_alone() {
    let lab = Lab::unobserved(&[("a", "1")]);
    let (root, contents) = (lab.root(), Arc::new(ContentCache::default()));
    let mut watching = Watching::open(&root, Selection::default(), None, contents, Box::new(|_| {})).unwrap();
    let now = Instant::now();
    watching.scan(Trust::Signatures, now);
    let quiet = watching.poll;
    assert!(quiet >= Some(now + SAFETY_LEAST));
    let confused = || Looked { confused: true, ..Looked::default() };
    watching.after(confused(), now);
    assert_eq!(watching.poll, Some(now + UNSTABLE_WAIT));
    // What `scan` notes of one that was; looking does not help.
    (watching.poll, watching.confused) = (quiet, true);
    watching.after(confused(), now);
    assert_eq!(watching.poll, quiet);
}

#[test]
fn files_written_right_after_mkdir_are_seen() {
    let mut lab = Lab::plain(&[("a", "1")]);
    lab.wait_names(&["a"]);
    for i in 0..100 {
        lab.write(&format!("d{i}/deep/er/f"), "x");
    }
    lab.wait("100 files in new directories", |lab| lab.names().len() == 101);
}

#[test]
fn a_renamed_directory_goes_on_being_watched_under_its_new_name() {
    let mut lab = Lab::plain(&[("old/in/f", "1")]);
    lab.wait_names(&["old/in/f"]);
    fs::rename(lab.path("old"), lab.path("new")).unwrap();
    lab.wait_names(&["new/in/f"]);
    lab.write("new/in/f", "2");
    lab.wait("the edit", |lab| lab.content_is("new/in/f", "2"));
    fs::rename(lab.path("new"), lab.path("old")).unwrap();
    lab.write("old/in/f", "3");
    lab.wait("the edit after the way back", |lab| lab.content_is("old/in/f", "3"));
}

#[test]
fn leaves_and_directories_swap() {
    let mut lab = Lab::plain(&[("a/x", "1"), ("b", "2")]);
    lab.wait_names(&["a/x", "b"]);
    fs::remove_dir_all(lab.path("a")).unwrap();
    lab.write("a", "file now");
    fs::remove_file(lab.path("b")).unwrap();
    lab.write("b/y", "dir now");
    lab.wait_names(&["a", "b/y"]);
    fs::remove_file(lab.path("a")).unwrap();
    symlink("b", lab.path("a")).unwrap();
    lab.wait("the link", |lab| lab.content_is("a", "b"));
}

/// The directory's own end is told of late: as long as somebody has it open it goes on.
#[test]
fn a_file_takes_the_place_of_an_empty_directory() {
    let mut lab = Lab::plain(&[("a", "1")]);
    for _ in 0..20 {
        lab.write("d/f", "1");
        lab.wait_names(&["a", "d/f"]);
        fs::remove_file(lab.path("d/f")).unwrap();
        lab.wait_names(&["a"]);
        let held = fs::File::open(lab.path("d")).unwrap();
        fs::remove_dir(lab.path("d")).unwrap();
        lab.write("d", "a file now");
        drop(held);
        lab.wait_names(&["a", "d"]);
        fs::remove_file(lab.path("d")).unwrap();
        lab.wait_names(&["a"]);
    }
}

#[test]
fn ignore_rules_are_followed_live_and_what_they_hide_is_released() {
    let mut lab = Lab::plain(&[("keep.log", "tracked"), ("src/f", "1")]);
    lab.write("x.log", "untracked");
    lab.wait_names(&["keep.log", "src/f", "x.log"]);
    lab.write(".gitignore", "*.log\n");
    lab.wait_names(&[".gitignore", "keep.log", "src/f"]);
    let snapshot = lab.snapshot.clone().unwrap();
    assert!(snapshot.released().contains(&rel("x.log")), "it still exists, so no server may delete it");
    lab.write("src/.gitignore", "!*.log\n");
    lab.write("src/y.log", "back in");
    lab.wait_names(&[".gitignore", "keep.log", "src/.gitignore", "src/f", "src/y.log"]);
    fs::write(lab.path(".git/info/exclude"), "f\n").unwrap();
    lab.write("src/f", "2");
    lab.wait("a tracked file is mirrored although ignored", |lab| lab.content_is("src/f", "2"));
    fs::remove_file(lab.path(".gitignore")).unwrap();
    lab.wait_names(&["keep.log", "src/.gitignore", "src/f", "src/y.log", "x.log"]);
}

#[test]
fn ignored_directories_are_entered_only_for_what_git_tracks_in_them() {
    let mut lab = Lab::plain(&[("out/kept", "1")]);
    lab.write(".gitignore", "out/\n");
    lab.write("out/built", "2");
    lab.write("out/deep/built", "2");
    lab.wait_names(&[".gitignore", "out/kept"]);
    lab.write("out/kept", "3");
    lab.wait("the tracked file's edit", |lab| lab.content_is("out/kept", "3"));
    assert_eq!(lab.names(), [".gitignore", "out/kept"]);
    lab.git(&["add", "--force", "out/built"]);
    lab.wait_names(&[".gitignore", "out/built", "out/kept"]);
    lab.git(&["rm", "--quiet", "--cached", "out/built"]);
    lab.wait_names(&[".gitignore", "out/kept"]);
}

#[test]
fn exclude_hides_untracked_and_include_reaches_below_ignored_directories() {
    let selection = Selection {
        exclude: vec!["*.mp4".into()],
        include: vec![".env.local".into(), "vendor/lib/".into()],
        ..Selection::default()
    };
    let mut lab = Lab::new(&[("t.mp4", "tracked"), (".gitignore", "vendor/\n.env.local\n")], selection);
    lab.write("u.mp4", "hidden");
    lab.write("app/.env.local", "wanted");
    lab.write("vendor/lib/deep/f", "wanted");
    lab.write("vendor/other/f", "ignored");
    lab.write("vendor/other/.env.local", "wanted");
    let expected = [".gitignore", "app/.env.local", "t.mp4", "vendor/lib/deep/f", "vendor/other/.env.local"];
    lab.wait_names(&expected);
    lab.write("vendor/lib/deep/f", "edited");
    lab.wait("an edit below an ignored directory", |lab| lab.content_is("vendor/lib/deep/f", "edited"));
    assert_eq!(lab.names(), expected);
}

#[test]
fn nested_repositories_are_left_out_while_they_are_repositories() {
    let mut lab = Lab::plain(&[("a", "1")]);
    lab.write("in/f", "1");
    lab.wait_names(&["a", "in/f"]);
    lab.git(&["init", "--quiet", "in"]);
    lab.wait_names(&["a"]);
    lab.write("in/g", "1");
    fs::remove_dir_all(lab.path("in/.git")).unwrap();
    lab.wait_names(&["a", "in/f", "in/g"]);
}

/// The rules of a directory change and go with it while git is at work: where they were is a file by then.
#[test]
fn a_file_takes_the_place_of_a_directory_whose_ignore_rules_changed() {
    let mut lab = Lab::plain(&[("a", "1"), ("d/.gitignore", "*.log\n"), ("d/f", "1")]);
    let lock = lab.root().join(".git/index.lock");
    fs::write(&lock, "").unwrap();
    lab.write("d/.gitignore", "*.o\n");
    fs::remove_dir_all(lab.root().join("d")).unwrap();
    lab.write("d", "now a file");
    fs::remove_file(&lock).unwrap();
    lab.wait_names(&["a", "d"]);
    // What is new is looked at after all that.
    lab.write("z", "1");
    lab.wait_names(&["a", "d", "z"]);
}

/// Git looks into another repository only as long as it tracks files there.
#[test]
fn a_nested_repository_is_entered_only_while_git_tracks_files_in_it() {
    let mut lab = Lab::plain(&[("a", "1"), ("in/deep/f", "1"), ("in/g", "1")]);
    lab.git(&["init", "--quiet", "in"]);
    lab.write("in/u", "untracked");
    lab.wait_names(&["a", "in/deep/f", "in/g", "in/u"]);
    lab.git(&["rm", "--quiet", "--cached", "in/g"]);
    lab.git(&["rm", "--quiet", "--cached", "in/deep/f"]);
    lab.wait_names(&["a"]);
    let released = lab.snapshot.as_ref().map(|s| s.released().clone()).unwrap_or_default();
    assert!(released.contains(&rel("in/deep/f")), "it still exists, so no server may delete it");
    lab.write("in/deep/f", "2");
    lab.write("a", "2");
    lab.wait("the edit", |lab| lab.content_is("a", "2"));
    assert_eq!(lab.names(), ["a"]);
    lab.git(&["reset", "--quiet", "--hard"]);
    lab.wait_names(&["a", "in/deep/f", "in/g", "in/u"]);
    lab.write("in/deep/f", "3");
    lab.wait("an edit in it", |lab| lab.content_is("in/deep/f", "3"));
}

#[test]
fn a_branch_that_tracks_files_in_an_ignored_directory_has_them_followed() {
    let mut lab = Lab::plain(&[(".gitignore", "out/\n"), ("a", "1")]);
    lab.git(&["branch", "plain"]);
    lab.write("out/deep/kept", "1");
    lab.git(&["add", "--force", "out/deep/kept"]);
    lab.git(&["commit", "--quiet", "--message=tracked"]);
    lab.git(&["checkout", "--quiet", "plain"]);
    lab.write("out/deep/built", "ignored");
    lab.wait_names(&[".gitignore", "a"]);
    lab.git(&["checkout", "--quiet", "main"]);
    lab.wait_names(&[".gitignore", "a", "out/deep/kept"]);
    lab.write("out/deep/kept", "2");
    lab.wait("a save after the switch", |lab| lab.content_is("out/deep/kept", "2"));
    assert_eq!(lab.names(), [".gitignore", "a", "out/deep/kept"]);
}

/// Git refuses these names, so they are not in the set; whoever has them is told.
#[test]
fn names_that_git_takes_for_its_own_are_told_of() {
    let mut lab = Lab::unobserved(&[("a", "1"), (".gitignore", "built/\ngit~2\n")]);
    lab.write("sub/git~1", "there before");
    lab.write("built/git~1", "ignored");
    lab.write("git~2", "ignored too");
    lab.observe(Selection::default(), None);
    let told = |lab: &Lab, what: &str| lab.notes.last().is_some_and(|note| note.contains(what));
    let reserved = "git reserves for itself";
    lab.wait("the first", |lab| {
        told(lab, &format!("name: sub/git~1 (the path has a component {reserved});"))
    });
    lab.write(".GIT/f", "there now");
    lab.wait("the second", |lab| told(lab, "name: .GIT (") && told(lab, "sub/git~1 ("));
    lab.write("new/deep/.git ", "in a new directory");
    lab.wait("the third", |lab| told(lab, "new/deep/.git  ("));
    fs::rename(lab.path("new"), lab.dir.path().join("elsewhere")).unwrap();
    fs::remove_dir_all(lab.path(".GIT")).unwrap();
    lab.wait("the first alone", |lab| told(lab, "name: sub/git~1 (") && !told(lab, ".GIT"));
    fs::remove_file(lab.path("sub/git~1")).unwrap();
    lab.wait("none", |lab| told(lab, "nothing is left out"));
    assert_eq!(lab.names(), [".gitignore", "a"]);
}

#[test]
fn modes_links_and_odd_names() {
    let mut lab = Lab::plain(&[("a", "1")]);
    lab.write("-- weird\n\u{1b}name", "x");
    symlink("nowhere", lab.path("dangling")).unwrap();
    fs::set_permissions(lab.path("a"), fs::Permissions::from_mode(0o755)).unwrap();
    lab.wait("all three", |lab| {
        let snapshot = lab.snapshot.as_ref();
        lab.names().len() == 3
            && snapshot
                .and_then(|s| s.root().get(&rel("a")))
                .is_some_and(|l| l.mode == crate::model::Mode::Executable)
    });
}

#[test]
fn files_over_the_limit_are_withheld_and_come_back() {
    let selection = Selection { max_file_size: 10, ..Selection::default() };
    let mut lab = Lab::new(&[("a", "small")], selection);
    lab.wait_names(&["a"]);
    lab.write("b", "much too large for that");
    lab.wait("withheld", |lab| {
        matches!(lab.withheld("b"), Some(WithheldReason::TooLarge { size: 23, limit: 10 }))
    });
    assert_eq!(lab.names(), ["a"]);
    lab.write("b", "fits");
    lab.wait_names(&["a", "b"]);
    assert_eq!(lab.withheld("b"), None);
}

fn many(count: usize) -> Vec<(String, String)> {
    (0..count).map(|i| (format!("d/f{i:03}"), i.to_string())).collect()
}

fn lab_of_many(count: usize) -> Lab {
    let files = many(count);
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let mut lab = Lab::plain(&files);
    lab.wait("the first scan", |lab| lab.names().len() == count);
    lab
}

#[test]
fn the_brake_trips_on_mass_deletion_even_in_slices_and_ends_when_files_return() {
    let mut lab = lab_of_many(60);
    for i in 0..40 {
        fs::remove_file(lab.path(&format!("d/f{i:03}"))).unwrap();
        std::thread::sleep(Duration::from_millis(15));
    }
    lab.wait("the brake", |lab| lab.brake.is_some());
    assert!(lab.names().len() >= 40, "what was published never fell below the threshold");
    lab.git(&["checkout", "--", "."]);
    lab.wait("the release", |lab| lab.brake.is_none());
    lab.wait("the files", |lab| lab.names().len() == 60);
}

/// The brake is set by the first look at them: none is taken for an edit because it was seen before the others.
#[test]
fn a_quick_deletion_of_many_files_deletes_none_before_the_brake_is_set() {
    // Where this thread has to wait for a processor, it is no quick one.
    for _ in 0..20 {
        let mut lab = lab_of_many(60);
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        for i in 0..50 {
            fs::remove_file(lab.path(&format!("d/f{i:03}"))).unwrap();
            std::thread::sleep(Duration::from_millis(1));
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        lab.wait("the brake", |lab| lab.brake.is_some());
        if longest < Duration::from_millis(30) {
            assert!(lab.names().len() >= 56, "{} files are left, {longest:?}", lab.names().len());
            return;
        }
    }
    panic!("this machine is too busy to remove files quickly");
}

#[test]
fn an_accepted_deletion_goes_through() {
    let mut lab = lab_of_many(60);
    fs::remove_dir_all(lab.path("d")).unwrap();
    lab.wait("the brake", |lab| lab.brake == Some(Missing { files: 60, of: 60 }));
    lab.write("new", "x");
    lab.wait("word of all that waits", |lab| lab.held_back == 61);
    fs::remove_file(lab.path("new")).unwrap();
    lab.wait("word of what is left", |lab| lab.held_back == 60);
    lab.ask(Request::Accept);
    lab.wait("the deletion", |lab| lab.names().is_empty());
    assert_eq!(lab.brake, None);
}

#[test]
fn what_git_itself_removes_never_trips_the_brake() {
    let mut lab = lab_of_many(60);
    lab.git(&["rm", "-r", "--quiet", "d"]);
    lab.wait("the removal", |lab| lab.names().is_empty());
    lab.git(&["reset", "--hard", "--quiet"]);
    lab.wait("the return", |lab| lab.names().len() == 60);
    lab.git(&["checkout", "--quiet", "--orphan", "other"]);
    lab.git(&["reset", "--hard", "--quiet"]);
    lab.wait("the empty branch", |lab| lab.names().is_empty());
    assert_eq!(lab.brake, None);
}

#[test]
fn a_vanished_tree_is_reported_and_nothing_is_taken_for_deleted() {
    let mut lab = lab_of_many(5);
    let aside = lab.dir.path().join("aside");
    fs::rename(lab.root(), &aside).unwrap();
    lab.wait("uprooted", |lab| lab.uprooted);
    assert_eq!(lab.names().len(), 5);
    fs::rename(&aside, lab.root()).unwrap();
    lab.wait("the return", |lab| !lab.uprooted);
    lab.write("d/new", "x");
    lab.wait("an edit after it", |lab| lab.names().len() == 6);
}

#[test]
fn a_vanished_git_directory_halts_too() {
    let mut lab = lab_of_many(5);
    fs::rename(lab.path(".git"), lab.dir.path().join("aside")).unwrap();
    lab.wait("uprooted", |lab| lab.uprooted);
    fs::rename(lab.dir.path().join("aside"), lab.path(".git")).unwrap();
    lab.write("d/new", "x");
    lab.wait("the return", |lab| lab.names().len() == 6);
}

#[test]
fn a_linked_worktree_and_a_sub_directory_lead_to_the_right_tree() {
    let lab = Lab::plain(&[("a/f", "1")]);
    lab.git(&["worktree", "add", "--quiet", "../linked"]);
    let (sender, reports) = mpsc::channel();
    let publish = Box::new(move |report| {
        let _ = sender.send(report);
    });
    let linked = lab.dir.path().join("linked");
    let observer = Observer::start(&linked.join("a"), Selection::default(), None, publish).unwrap();
    assert_eq!(observer.workdir, linked.canonicalize().unwrap());
    let mut seen = Lab {
        dir: tempfile::tempdir().unwrap(),
        observer: Some(observer),
        reports,
        snapshot: None,
        preview: None,
        unfinished: false,
        brake: None,
        held_back: 0,
        notes: Vec::new(),
        uprooted: false,
        scanned: None,
    };
    seen.wait_names(&["a/f"]);
    fs::write(linked.join("a/g"), "2").unwrap();
    seen.wait_names(&["a/f", "a/g"]);
}

#[test]
fn a_directory_that_was_a_link_to_the_root_for_a_moment_does_not_blind_us() {
    let mut lab = Lab::plain(&[("a", "1")]);
    lab.wait_names(&["a"]);
    for i in 0..40 {
        lab.write("d/sub/f", "x");
        lab.write("sub/g", "x");
        fs::remove_dir_all(lab.path("d")).unwrap();
        symlink(".", lab.path("d")).unwrap();
        lab.write("d/sub/h", "through the link");
        fs::remove_file(lab.path("d")).unwrap();
        lab.write("d/new/deep/f", &i.to_string());
        lab.wait("the last state", |lab| {
            lab.names() == ["a", "d/new/deep/f", "sub/g", "sub/h"]
                && lab.content_is("d/new/deep/f", &i.to_string())
        });
        fs::remove_dir_all(lab.path("d")).unwrap();
        fs::remove_dir_all(lab.path("sub")).unwrap();
        lab.wait_names(&["a"]);
    }
}

#[test]
fn a_file_a_server_holds_that_is_ignored_here_is_released_when_asked_about() {
    let mut lab = Lab::plain(&[(".gitignore", "out\n"), ("a", "1")]);
    lab.write("out", "built before this program started");
    lab.wait_names(&[".gitignore", "a"]);
    lab.ask(Request::Check(vec![rel("out"), rel("gone")]));
    lab.wait("the release", |lab| {
        let released = lab.snapshot.as_ref().map(|s| s.released().clone()).unwrap_or_default();
        released.contains(&rel("out")) && !released.contains(&rel("gone"))
    });
}

#[test]
fn a_left_over_lock_and_a_lost_index_excuse_no_deletion() {
    let mut lab = lab_of_many(60);
    fs::write(lab.path(".git/index.lock"), "").unwrap();
    for i in 0..40 {
        fs::remove_file(lab.path(&format!("d/f{i:03}"))).unwrap();
    }
    lab.wait("the brake", |lab| lab.brake.is_some());
    assert!(lab.names().len() >= 40);
    fs::rename(lab.path(".git/index"), lab.path(".git/index.aside")).unwrap();
    lab.wait("uprooted", |lab| lab.uprooted);
    fs::rename(lab.path(".git/index.aside"), lab.path(".git/index")).unwrap();
    lab.git_plumbing_checkout();
    lab.wait("the files", |lab| lab.brake.is_none() && lab.names().len() == 60);
}

#[test]
fn what_was_withheld_is_not_once_it_is_gone() {
    let selection = Selection { max_file_size: 10, ..Selection::default() };
    let mut lab = Lab::new(&[("a", "small")], selection);
    lab.write("big/h", "much too large for that");
    lab.wait("withheld", |lab| lab.withheld("big/h").is_some());
    fs::rename(lab.path("big"), lab.dir.path().join("elsewhere")).unwrap();
    lab.write("a", "other");
    lab.wait("no longer", |lab| lab.content_is("a", "other") && lab.withheld("big/h").is_none());
}

/// None of these is in the snapshot, and the end of each changes something all the same.
#[test]
fn the_end_of_what_is_known_only_as_left_out_is_noticed() {
    let mut lab = Lab::plain(&[("a", "1"), ("x.log", "tracked")]);
    fs::write(lab.path(".git/info/exclude"), "/.gitignore\n").unwrap();
    lab.write("y.log", "untracked");
    lab.wait_names(&["a", "x.log", "y.log"]);
    lab.write(".gitignore", "*.log\n");
    lab.wait_names(&["a", "x.log"]);
    let released = |lab: &Lab| lab.snapshot.as_ref().unwrap().released().contains(&rel("y.log"));
    assert!(released(&lab));
    fs::remove_file(lab.path("y.log")).unwrap();
    lab.wait("the end of a released file", |lab| !released(lab));
    lab.write("z.log", "untracked");
    fs::remove_file(lab.path(".gitignore")).unwrap();
    lab.wait_names(&["a", "x.log", "z.log"]);
}

/// A repository of four files that were all read once by an observer with this cache, at rest.
fn lab_with_cache(cache: &Path) -> Lab {
    let mut lab = Lab::unobserved(&[("a", "1"), ("d/b", "2"), ("d/e/c", "a longer one"), ("d/z", "4")]);
    lab.let_stamps_settle();
    lab.observe(Selection::default(), Some(cache));
    lab.wait_names(&["a", "d/b", "d/e/c", "d/z"]);
    assert_eq!(lab.scanned, Some((4, 4)));
    lab.observer = None;
    lab
}

#[test]
fn only_what_changed_is_read_by_the_next_start() {
    let cache = tempfile::tempdir().unwrap();
    let mut lab = lab_with_cache(cache.path());
    let id = lab.snapshot.as_ref().unwrap().id();
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait_names(&["a", "d/b", "d/e/c", "d/z"]);
    assert_eq!(lab.scanned, Some((4, 0)));
    assert_eq!(lab.snapshot.as_ref().unwrap().id(), id);
    lab.observer = None;
    // Same size; only the times say that it is another.
    lab.write("d/b", "9");
    fs::remove_file(lab.path("d/z")).unwrap();
    lab.write("d/y", "5");
    lab.let_stamps_settle();
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait_names(&["a", "d/b", "d/e/c", "d/y"]);
    assert_eq!(lab.scanned, Some((4, 2)));
    assert!(lab.content_is("d/b", "9") && lab.content_is("d/e/c", "a longer one"));
}

#[test]
fn a_file_read_in_the_moment_of_its_change_is_read_again() {
    let cache = tempfile::tempdir().unwrap();
    let mut lab = lab_with_cache(cache.path());
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait_names(&["a", "d/b", "d/e/c", "d/z"]);
    lab.write("a", "8");
    lab.wait("the edit", |lab| lab.content_is("a", "8"));
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait("the edit again", |lab| lab.content_is("a", "8"));
    assert_eq!(lab.scanned, Some((4, 1)));
}

#[test]
fn a_lost_or_damaged_cache_costs_reading_and_nothing_else() {
    let cache = tempfile::tempdir().unwrap();
    let mut lab = lab_with_cache(cache.path());
    let file = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for bytes in [&damaged[..], &whole[..100], b""] {
        fs::write(&file, bytes).unwrap();
        lab.observe(Selection::default(), Some(cache.path()));
        lab.wait_names(&["a", "d/b", "d/e/c", "d/z"]);
        assert_eq!(lab.scanned, Some((4, 4)), "{} bytes", bytes.len());
        lab.observer = None;
        assert_eq!(fs::read(&file).unwrap(), whole, "it is whole again");
    }
}

#[test]
fn what_is_remembered_of_files_says_nothing_of_the_rules() {
    let cache = tempfile::tempdir().unwrap();
    let mut lab = lab_with_cache(cache.path());
    // A lower limit withholds a file that did not change.
    let small = Selection { max_file_size: 5, ..Selection::default() };
    lab.observe(small.clone(), Some(cache.path()));
    lab.wait_names(&["a", "d/b", "d/z"]);
    assert_eq!(lab.withheld("d/e/c"), Some(WithheldReason::TooLarge { size: 12, limit: 5 }));
    lab.observer = None;
    lab.observe(small, None);
    lab.wait_names(&["a", "d/b", "d/z"]);
    assert_eq!(lab.withheld("d/e/c"), Some(WithheldReason::TooLarge { size: 12, limit: 5 }));
    // What is ignored by now, and tracked no more.
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait_names(&["a", "d/b", "d/e/c", "d/z"]);
    lab.observer = None;
    lab.git(&["rm", "--quiet", "--cached", "d/b"]);
    fs::write(lab.path(".git/info/exclude"), "b\n").unwrap();
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait_names(&["a", "d/e/c", "d/z"]);
    // Another bit of what git says of a file.
    lab.observer = None;
    lab.git(&["config", "core.fileMode", "false"]);
    lab.git(&["update-index", "--chmod=+x", "a"]);
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait("the mode", |lab| {
        let leaf = lab.snapshot.as_ref().and_then(|s| s.root().get(&rel("a")).copied());
        leaf.is_some_and(|leaf| leaf.mode == crate::model::Mode::Executable)
    });
}

#[test]
fn an_unreadable_file_is_withheld_whatever_is_remembered_of_it() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut lab = lab_with_cache(cache.path());
    fs::set_permissions(lab.path("a"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(lab.path("d/e"), fs::Permissions::from_mode(0o0)).unwrap();
    for cache in [Some(cache.path()), None] {
        lab.observe(Selection::default(), cache);
        lab.wait_names(&["d/b", "d/z"]);
        assert!(lab.withheld("a").is_some() && lab.withheld("d/e").is_some());
    }
    fs::set_permissions(lab.path("d/e"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn another_root_at_the_same_place_is_another_tree() {
    let cache = tempfile::tempdir().unwrap();
    let mut lab = lab_with_cache(cache.path());
    let other = lab.dir.path().join("other");
    fs::rename(lab.root(), &other).unwrap();
    fs::create_dir(lab.root()).unwrap();
    for entry in fs::read_dir(&other).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), lab.root().join(entry.file_name())).unwrap();
    }
    lab.observe(Selection::default(), Some(cache.path()));
    lab.wait_names(&["a", "d/b", "d/e/c", "d/z"]);
    assert_eq!(lab.scanned, Some((4, 4)));
}
