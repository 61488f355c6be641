//! `drift`: what a server kept when somebody else had changed a file of ours there.
//!
//! Talks to the server beside any running session, and never touches the working tree: kept files are
//! shown, compared, or written to a directory outside of it.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gitsync_core::config::{self, Config, RepoConfig, ServerUrl};
use gitsync_core::mirror::visit::Visit;
use gitsync_core::model::path::escape;
use gitsync_core::model::{ErrorCode, ErrorReport, Mode, RelPath, TargetId};
use gitsync_core::repo::Repo;
use gitsync_core::wire::KeptFile;
use gitsync_core::{engine, transport};
use rustix::fs::{AtFlags, Mode as FileMode, OFlags, mkdirat, openat, symlinkat, unlinkat};
use rustix::io::Errno;
use similar::TextDiff;

use super::{Failure, chain, columns, load, print};
use crate::cli::{Cli, parse_glob};
use crate::dashboard::format::{age, bytes, plural};
use crate::embedded::Embedded;
use crate::exit::Exit;
use crate::{SOFTWARE, hints};

/// Larger files are not compared.
const DIFF_BYTES: u64 = 1 << 20;
/// A comparison that takes longer becomes coarser.
const DIFF_LIMIT: Duration = Duration::from_secs(2);
/// Names that are tried for one file before it is given up.
const NUMBERS: u32 = 1_000;

/// What to do with what was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    List,
    Diff,
    RestoreTo(&'a Path),
}

impl<'a> Wanted<'a> {
    pub fn of(diff: bool, restore_to: Option<&'a Path>) -> Self {
        match restore_to {
            Some(dir) => Self::RestoreTo(dir),
            None if diff => Self::Diff,
            None => Self::List,
        }
    }
}

/// Why a kept file was not fetched or written.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{}", .0.one_line())]
    Server(ErrorReport),
    #[error("cannot write it")]
    Write(#[from] io::Error),
    #[error("it is not as long as the server said")]
    Length,
    #[error("there are {NUMBERS} of that name already")]
    Names,
}

impl From<ErrorReport> for FetchError {
    fn from(report: ErrorReport) -> Self {
        Self::Server(report)
    }
}

impl From<Errno> for FetchError {
    fn from(errno: Errno) -> Self {
        Self::Write(errno.into())
    }
}

pub fn run(cli: &Cli, target: &str, wanted: Wanted<'_>) -> Result<Exit, Failure> {
    let config = load(cli)?;
    let target = one(&config, target)?;
    let (repo, url) = parts(&config, &target)?;
    let opened = Repo::open(&repo.path).map_err(|e| {
        let hint = hints::next_step_of_task(ErrorCode::Repository);
        Failure::new(Exit::Incomplete, format!("{}\n{hint}", chain(&e)))
    })?;
    let into = match wanted {
        Wanted::RestoreTo(dir) => Some(restore_dir(dir, &opened)?),
        Wanted::List | Wanted::Diff => None,
    };
    if matches!(&url, ServerUrl::Embedded(root) if !root.exists()) {
        return Ok(print(&nothing(&target), Exit::Done));
    }
    let Some(state_dir) = config::state_dir(|name| std::env::var_os(name)) else {
        let message = "there is no place to remember who this client is: set $HOME or $XDG_STATE_HOME";
        return Err(Failure::new(Exit::Config, message));
    };
    let owner_id = engine::owner_id_for(&state_dir, &opened.workdir)
        .map_err(|e| Failure::new(Exit::Incomplete, chain(&e)))?;
    let runtime =
        crate::runtime().map_err(|e| Failure::new(Exit::Bug, format!("cannot start threads: {e}")))?;
    let done = runtime.block_on(async {
        let embedded: Arc<dyn transport::EmbeddedHost> = Arc::new(Embedded);
        let channel = transport::channel(&url, &embedded)
            .map_err(|e| ErrorReport::of(ErrorCode::Unreachable, &e, false))?;
        let mut visit = Visit::open(channel, SOFTWARE).await?;
        let mut kept = visit.list_kept(&repo.workspace, &owner_id).await?;
        kept.sort_by(|a, b| (&a.path, a.kept_at).cmp(&(&b.path, b.kept_at)));
        if kept.is_empty() {
            return Ok(print(&nothing(&target), Exit::Done));
        }
        Ok(match (wanted, into) {
            (Wanted::Diff, _) => diff(&mut visit, &kept, &opened.workdir, &target).await,
            (_, Some((dir, path))) => restore(&mut visit, &kept, dir.as_fd(), &path).await,
            _ => print(&table(&kept, SystemTime::now()), Exit::Done),
        })
    });
    runtime.shutdown_background();
    done.map_err(|report: ErrorReport| {
        let exit = match report.code {
            ErrorCode::Unreachable => Exit::Unreached,
            _ => Exit::Incomplete,
        };
        Failure::new(
            exit,
            format!("{target}: {}\n{}", report.one_line(), hints::next_step_of_task(report.code)),
        )
    })
}

/// The one target that is meant, by its id or a glob that fits no other.
fn one(config: &Config, text: &str) -> Result<TargetId, Failure> {
    let all = config.targets();
    let glob = parse_glob(text).map_err(|e| Failure::new(Exit::Usage, format!("`{text}`: {e}")))?;
    let named: Vec<&TargetId> = match all.iter().find(|target| target.to_string() == text) {
        Some(exact) => vec![exact],
        None => all.iter().filter(|target| glob.is_match(target.to_string())).collect(),
    };
    let names =
        |targets: &[&TargetId]| targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let all: Vec<&TargetId> = all.iter().collect();
            let message = format!("no target matches `{text}`\nthe targets are: {}", names(&all));
            Err(Failure::new(Exit::NoTarget, message))
        }
        several => Err(Failure::new(
            Exit::Usage,
            format!("`{text}` is several targets; name one: {}", names(several)),
        )),
    }
}

fn parts(config: &Config, target: &TargetId) -> Result<(RepoConfig, ServerUrl), Failure> {
    let repo = config.repos.iter().find(|repo| repo.name == target.repo);
    let server = config.servers.iter().find(|server| server.name == target.server);
    match (repo, server) {
        (Some(repo), Some(server)) => Ok((repo.clone(), server.url.clone())),
        _ => Err(Failure::new(Exit::Bug, format!("{target} is in no configuration"))),
    }
}

fn nothing(target: &TargetId) -> String {
    format!("{target}: nothing was kept\n")
}

fn table(kept: &[KeptFile], now: SystemTime) -> String {
    let mut rows = vec![["AGE", "SIZE", "PATH"].map(str::to_owned).to_vec()];
    rows.extend(kept.iter().map(|file| vec![old(file, now), bytes(file.size), file.path.to_string()]));
    columns(&rows)
}

fn old(file: &KeptFile, now: SystemTime) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    age(now.saturating_sub(Duration::from_secs(file.kept_at)))
}

async fn diff(visit: &mut Visit, kept: &[KeptFile], workdir: &Path, target: &TargetId) -> Exit {
    // What a server sends must not command the terminal; in a pipe it stays a patch.
    let terminal = io::stdout().is_terminal();
    for file in kept {
        let text = match compared(visit, file, workdir, target).await {
            Ok(text) => text,
            Err(error) => {
                crate::say(&format!("{}: {}", file.path, chain(&error)));
                return Exit::Incomplete;
            }
        };
        let text = if terminal { tame(&text) } else { text };
        if print(&text, Exit::Done) != Exit::Done {
            return Exit::StdoutClosed;
        }
    }
    Exit::Done
}

async fn compared(
    visit: &mut Visit,
    file: &KeptFile,
    workdir: &Path,
    target: &TargetId,
) -> Result<String, FetchError> {
    let path = &file.path;
    if file.size > DIFF_BYTES {
        return Ok(format!("{path}: {}, too large to compare\n", bytes(file.size)));
    }
    let theirs = fetch(visit, file).await?;
    if file.mode == Mode::Symlink {
        return Ok(format!("{path}: a symlink to {} was kept\n", escape(&theirs)));
    }
    let here = workdir.join(path.as_path());
    let ours = match here.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() <= DIFF_BYTES => fs::read(&here)?,
        Ok(found) if found.is_file() => {
            return Ok(format!("{path}: {} here, too large to compare\n", bytes(found.len())));
        }
        Ok(_) => return Ok(format!("{path}: a file was kept, and here it is none\n")),
        Err(_) => Vec::new(),
    };
    Ok(unified(&ours, &theirs, path, &target.server))
}

/// From ours to what was kept.
fn unified(ours: &[u8], theirs: &[u8], path: &RelPath, server: &str) -> String {
    if ours == theirs {
        return format!("{path}: the same as here\n");
    }
    let text = |bytes: &[u8]| match bytes.contains(&0) {
        true => None,
        false => String::from_utf8(bytes.to_vec()).ok(),
    };
    let (Some(ours), Some(theirs)) = (text(ours), text(theirs)) else {
        return format!("{path}: binary, and differs\n");
    };
    let diff = TextDiff::configure().timeout(DIFF_LIMIT).diff_lines(&ours, &theirs);
    diff.unified_diff().header(&format!("here/{path}"), &format!("{server}/{path}")).to_string()
}

/// Without any control character but line ends and tabs.
fn tame(text: &str) -> String {
    text.split_inclusive(['\n', '\t'])
        .map(|part| {
            let (body, end) = part.split_at(part.trim_end_matches(['\n', '\t']).len());
            let escaped: Vec<String> = body.split('\\').map(|piece| escape(piece.as_bytes())).collect();
            escaped.join("\\") + end
        })
        .collect()
}

async fn fetch(visit: &mut Visit, file: &KeptFile) -> Result<Vec<u8>, FetchError> {
    let mut content = Vec::new();
    visit
        .fetch_kept(&file.id, |piece| {
            content.extend_from_slice(&piece);
            if content.len() as u64 > file.size { Err(FetchError::Length) } else { Ok(()) }
        })
        .await?;
    if content.len() as u64 == file.size { Ok(content) } else { Err(FetchError::Length) }
}

/// Makes and opens the directory to restore to, and answers where it is.
fn restore_dir(dir: &Path, repo: &Repo) -> Result<(OwnedFd, PathBuf), Failure> {
    let fail = |what: &str, e: &dyn std::error::Error| {
        Failure::new(Exit::Incomplete, format!("cannot {what} {}: {e}", dir.display()))
    };
    let inside = |path: &Path| {
        [&repo.workdir, &repo.git_dir, &repo.common_dir].iter().any(|root| path.starts_with(root))
    };
    let refuse = || {
        let message = format!(
            "{} lies in the repository, which this command never touches\nname a directory outside of {}",
            dir.display(),
            repo.workdir.display()
        );
        Failure::new(Exit::Usage, message)
    };
    // Before anything is made: where would it be, links followed?
    let absolute = std::path::absolute(dir).map_err(|e| fail("find", &e))?;
    let above = absolute.ancestors().find_map(|above| above.canonicalize().ok());
    if above.is_some_and(|above| inside(&above)) {
        return Err(refuse());
    }
    fs::create_dir_all(&absolute).map_err(|e| fail("make", &e))?;
    let real = absolute.canonicalize().map_err(|e| fail("find", &e))?;
    if inside(&real) {
        return Err(refuse());
    }
    let opened = File::open(&real).map_err(|e| fail("open", &e))?;
    Ok((opened.into(), real))
}

async fn restore(
    visit: &mut Visit,
    kept: &[KeptFile],
    dir: std::os::fd::BorrowedFd<'_>,
    path: &Path,
) -> Exit {
    let mut text = String::new();
    for file in kept {
        match restore_one(visit, file, dir).await {
            Ok(name) => text += &format!("{}/{}\n", path.display(), escape(&name)),
            Err(error) => {
                crate::say(&format!("{}: {}", file.path, chain(&error)));
                // A fetch that broke off leaves the conversation in the middle.
                return Exit::worst([print(&text, Exit::Done), Exit::Incomplete]);
            }
        }
    }
    text += &format!("{} restored\n", plural(kept.len() as u64, "file"));
    print(&text, Exit::Done)
}

/// Writes one kept file below `dir`, under its path or the first with a number that is free. Answers that path.
async fn restore_one(
    visit: &mut Visit,
    file: &KeptFile,
    dir: std::os::fd::BorrowedFd<'_>,
) -> Result<Vec<u8>, FetchError> {
    let mut at = dir.try_clone_to_owned()?;
    let mut path = Vec::new();
    let names: Vec<&[u8]> = file.path.components().collect();
    let (last, above) = names.split_last().expect("a path has a name");
    for name in above {
        let (entered, name) = numbered(name, |name| enter(&at, name))?;
        at = entered;
        path.extend_from_slice(&name);
        path.push(b'/');
    }
    let name = if file.mode == Mode::Symlink {
        let link = fetch(visit, file).await?;
        numbered(last, |name| free(symlinkat(link.as_slice(), &at, name)))?.1
    } else {
        let mode = if file.mode == Mode::Executable { 0o755 } else { 0o644 };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |name: &[u8]| free(openat(&at, name, flags, FileMode::from_raw_mode(mode)));
        let (made, name) = numbered(last, open)?;
        if let Err(error) = fill(visit, file, File::from(made)).await {
            // Half a file would pass for what was kept.
            let _ = unlinkat(&at, name.as_slice(), AtFlags::empty());
            return Err(error);
        }
        name
    };
    path.extend_from_slice(&name);
    Ok(path)
}

async fn fill(visit: &mut Visit, file: &KeptFile, mut made: File) -> Result<(), FetchError> {
    let mut length = 0;
    visit
        .fetch_kept(&file.id, |piece| {
            length += piece.len() as u64;
            made.write_all(&piece).map_err(FetchError::Write)
        })
        .await?;
    if length == file.size { Ok(()) } else { Err(FetchError::Length) }
}

/// Tries `name`, `name.1`, `name.2`.. until `make` has one; it answers `None` for one that is taken.
fn numbered<T>(
    name: &[u8],
    mut make: impl FnMut(&[u8]) -> Result<Option<T>, Errno>,
) -> Result<(T, Vec<u8>), FetchError> {
    for number in 0..NUMBERS {
        let mut name = name.to_vec();
        if number > 0 {
            name.extend_from_slice(format!(".{number}").as_bytes());
        }
        if let Some(made) = make(&name)? {
            return Ok((made, name));
        }
    }
    Err(FetchError::Names)
}

fn free<T>(made: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(Errno::EXIST) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a directory, made if it is not there. `None` if something else has the name, a symlink included.
fn enter(at: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    match mkdirat(at, name, FileMode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(at, name, flags, FileMode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_goes_from_ours_to_theirs() {
        let path = RelPath::new("src/a.c").unwrap();
        assert_eq!(
            unified(b"1\n2\n3\n", b"1\nx\n3\n", &path, "gpu"),
            "--- here/src/a.c\n+++ gpu/src/a.c\n@@ -1,3 +1,3 @@\n 1\n-2\n+x\n 3\n"
        );
        assert_eq!(unified(b"", b"\0", &path, "gpu"), "src/a.c: binary, and differs\n");
        assert_eq!(unified(b"\xff", b"a", &path, "gpu"), "src/a.c: binary, and differs\n");
        assert_eq!(unified(b"a", b"a", &path, "gpu"), "src/a.c: the same as here\n");
        assert_eq!(tame("+a\tb\x1b[2Jc\\n\r\n"), "+a\tb\\u{1b}[2Jc\\n\\u{d}\n");
    }

    #[test]
    fn names_that_are_taken_get_a_number_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("d")).unwrap();
        let at: OwnedFd = File::open(dir.path()).unwrap().into();
        let (_, name) = numbered(b"d", |name| enter(&at, name)).unwrap();
        assert_eq!(name, b"d.1");
        let (_, name) = numbered(b"d", |name| enter(&at, name)).unwrap();
        assert_eq!(name, b"d.1", "a directory is shared");
        let (_, name) = numbered(b"d", |name| free(symlinkat("x", &at, name))).unwrap();
        assert_eq!(name, b"d.2");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
