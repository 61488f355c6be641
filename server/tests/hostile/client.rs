//! A client that says what a test wants, true or not.
//!
//! Messages are the generated types, so nothing checks them before they are sent. Where the changes make a
//! tree, the ids are the right ones: the server then gets as far as the disk.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gitsync_core::model::{ContentId, Dir, HashKind, Leaf, Mode, PatchId, RelPath, Signature, Snapshot};
use gitsync_core::wire::PROTOCOL;
use gitsync_core::wire::proto::mirror_client::MirrorClient;
use gitsync_core::wire::proto::{self, change, client_message, server_message};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::tree;

pub const HASH: HashKind = HashKind::Sha1;
/// A server that says nothing for this long hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const OWNER: &str = "hostile";
/// Names nothing.
const NO_ID: [u8; 20] = [7; 20];

/// One change, and the content that goes with it.
#[derive(Debug, Clone)]
pub struct Edit {
    path: Vec<u8>,
    kind: change::Kind,
    bytes: Option<Vec<u8>>,
}

pub fn file(path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Edit {
    put(path.as_ref(), proto::Mode::File, bytes.as_ref())
}

pub fn executable(path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Edit {
    put(path.as_ref(), proto::Mode::Executable, bytes.as_ref())
}

pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Edit {
    put(path.as_ref(), proto::Mode::Symlink, target.as_ref())
}

pub fn delete(path: impl AsRef<[u8]>) -> Edit {
    Edit { path: path.as_ref().to_vec(), kind: change::Kind::Delete(proto::Delete {}), bytes: None }
}

pub fn release(path: impl AsRef<[u8]>) -> Edit {
    Edit { path: path.as_ref().to_vec(), kind: change::Kind::Release(proto::Release {}), bytes: None }
}

fn put(path: &[u8], mode: proto::Mode, bytes: &[u8]) -> Edit {
    let put = proto::Put {
        mode: mode.into(),
        content: content_id(bytes).to_vec().into(),
        size: bytes.len() as u64,
    };
    Edit { path: path.to_vec(), kind: change::Kind::Put(put), bytes: Some(bytes.to_vec()) }
}

fn content_id(bytes: &[u8]) -> Vec<u8> {
    ContentId::of(HASH, bytes).as_bytes().to_vec()
}

impl Edit {
    /// The mode field holds this number, whatever it means.
    pub fn with_mode(mut self, number: i32) -> Self {
        if let change::Kind::Put(put) = &mut self.kind {
            put.mode = number;
        }
        self
    }

    /// The declared size is not the content's.
    pub fn with_size(mut self, size: u64) -> Self {
        if let change::Kind::Put(put) = &mut self.kind {
            put.size = size;
        }
        self
    }

    /// The content is named and does not come.
    pub fn without_content(mut self) -> Self {
        self.bytes = None;
        self
    }

    /// Paths are ordered by components: `/` sorts before every other byte.
    fn sort_key(&self) -> Vec<u8> {
        self.path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
    }

    fn change(&self) -> proto::Change {
        proto::Change { path: self.path.clone().into(), kind: Some(self.kind.clone()) }
    }

    fn content(&self) -> Option<proto::Content> {
        let bytes = self.bytes.as_ref()?;
        Some(proto::Content {
            id: content_id(bytes).into(),
            size: bytes.len() as u64,
            offset: 0,
            encoding: proto::Encoding::Raw.into(),
            data: bytes.clone().into(),
            length: bytes.len() as u64,
            base: None,
        })
    }

    /// What the server's tree should hold afterwards, `None` for a change no tree can have.
    fn leaf(&self) -> Option<(RelPath, Option<Leaf>)> {
        let path = RelPath::new(&self.path).ok()?;
        let change::Kind::Put(put) = &self.kind else { return Some((path, None)) };
        let mode = match put.mode() {
            proto::Mode::File => Mode::File,
            proto::Mode::Executable => Mode::Executable,
            proto::Mode::Symlink => Mode::Symlink,
            proto::Mode::Unspecified => return None,
        };
        let id = ContentId::from_bytes(&put.content).ok()?;
        Some((path, Some(Leaf { mode, id, signature: Signature::default() })))
    }

    /// Panics unless the file system holds exactly this.
    #[track_caller]
    fn assert_on_disk(&self, workspace: &Path) {
        let path = workspace.join(OsStr::from_bytes(&self.path));
        let change::Kind::Put(put) = &self.kind else { return };
        let stat = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let bytes = match put.mode() {
            proto::Mode::Symlink => {
                assert!(stat.is_symlink(), "{path:?} is no symlink");
                tree::target(&path)
            }
            mode => {
                assert!(stat.is_file(), "{path:?} is no file");
                let is_executable = tree::permissions(&path) & 0o100 != 0;
                assert_eq!(is_executable, mode == proto::Mode::Executable, "{path:?}");
                fs::read(&path).expect("a file can be read")
            }
        };
        assert_eq!(Some(bytes), self.bytes, "{path:?}");
    }
}

/// What came of a patch.
#[derive(Debug)]
pub enum Answer {
    Ack(proto::Ack),
    Refused(proto::Refusal),
    /// The stream ended without a word.
    Closed,
}

impl Answer {
    #[track_caller]
    pub fn acked(self) -> proto::Ack {
        match self {
            Answer::Ack(ack) => ack,
            other => panic!("not acked: {other:?}"),
        }
    }

    #[track_caller]
    pub fn refused(self) -> proto::Refusal {
        match self {
            Answer::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// One stream.
#[derive(Debug)]
pub struct Session {
    runtime: Handle,
    out: mpsc::Sender<proto::ClientMessage>,
    replies: Streaming<proto::ServerMessage>,
    /// Where the workspace is, to compare with what was sent.
    workspace: PathBuf,
    /// What the server should hold, if that is known.
    held: Option<Arc<Dir>>,
    generation: u64,
}

/// A stream past Hello, to a server that serves `root`.
pub fn greet(runtime: &Handle, address: &str, root: &Path, workspace: &str, features: &[&str]) -> Session {
    let (out, messages) = mpsc::channel(16);
    let endpoint = tonic::transport::Endpoint::from_shared(address.to_owned()).expect("an address");
    let replies = runtime.block_on(async {
        let channel = endpoint.connect().await.expect("the server listens");
        let optional = features.iter().map(|feature| (*feature).to_owned()).collect();
        let hello = proto::Hello { protocol: PROTOCOL, optional, ..proto::Hello::default() };
        send(&out, client_message::Kind::Hello(hello)).await;
        MirrorClient::new(channel).sync(ReceiverStream::new(messages)).await
    });
    let replies = replies.expect("the service is there").into_inner();
    let workspace = root.join(workspace);
    let runtime = runtime.clone();
    let mut session = Session { runtime, out, replies, workspace, held: None, generation: 0 };
    let welcome = session.receive();
    assert!(matches!(welcome, Some(server_message::Kind::Welcome(_))), "{welcome:?}");
    session
}

async fn send(out: &mpsc::Sender<proto::ClientMessage>, kind: client_message::Kind) {
    // A server that has ended the stream is found out by whoever waits for its answer.
    let _ = out.send(proto::ClientMessage { kind: Some(kind) }).await;
}

impl Session {
    /// Opens the workspace, or gives back the refusal that came instead.
    pub fn open(mut self, workspace: &str) -> Result<Self, Box<proto::Refusal>> {
        self.say(client_message::Kind::NewSession(proto::NewSession {
            workspace: workspace.to_owned(),
            owner_id: OWNER.to_owned(),
            owner_text: "a hostile client".to_owned(),
            object_format: proto::ObjectFormat::Sha1.into(),
            ..proto::NewSession::default()
        }));
        match self.receive() {
            Some(server_message::Kind::Session(opened)) => {
                let empty = Dir::empty(HASH);
                self.held = (opened.held == empty.id().as_bytes()).then_some(empty);
                Ok(self)
            }
            Some(server_message::Kind::Refusal(refusal)) => Err(Box::new(refusal)),
            other => panic!("neither a session nor a refusal: {other:?}"),
        }
    }

    /// Instead of opening it: what the workspace's recovery store holds, `None` if that is refused.
    pub fn list_kept(&mut self, workspace: &str) -> Option<Vec<proto::KeptFile>> {
        let (workspace, owner_id) = (workspace.to_owned(), OWNER.to_owned());
        self.say(client_message::Kind::ListKept(proto::ListKept { workspace, owner_id }));
        match self.receive() {
            Some(server_message::Kind::Kept(kept)) => Some(kept.files),
            Some(server_message::Kind::Refusal(_)) => None,
            other => panic!("an answer to something else: {other:?}"),
        }
    }

    /// The bytes of one small kept file, `None` if that is refused.
    pub fn fetch_kept(&mut self, id: &str) -> Option<Bytes> {
        self.say(client_message::Kind::FetchKept(proto::FetchKept { id: id.to_owned() }));
        match self.receive() {
            Some(server_message::Kind::KeptContent(content)) => Some(content.data),
            Some(server_message::Kind::Refusal(_)) => None,
            other => panic!("an answer to something else: {other:?}"),
        }
    }

    pub fn say(&self, kind: client_message::Kind) {
        self.runtime.block_on(send(&self.out, kind));
    }

    /// The next message that answers one of ours, `None` at the end of the stream.
    pub fn receive(&mut self) -> Option<server_message::Kind> {
        loop {
            match self.next_message() {
                // Told unasked, whenever the server looked, and credit for what goes in the background.
                Some(server_message::Kind::Drift(_) | server_message::Kind::Taken(_)) => {}
                other => return other,
            }
        }
    }

    fn next_message(&mut self) -> Option<server_message::Kind> {
        let next = async { tokio::time::timeout(PATIENCE, self.replies.message()).await };
        let message = self.runtime.block_on(next).expect("the server answers in time");
        message.ok().flatten().map(|message| message.kind.expect("a kind this client knows"))
    }

    fn answer(&mut self) -> Answer {
        match self.receive() {
            Some(server_message::Kind::Ack(ack)) => Answer::Ack(ack),
            Some(server_message::Kind::Refusal(refusal)) => Answer::Refused(refusal),
            None => Answer::Closed,
            Some(other) => panic!("an answer to something else: {other:?}"),
        }
    }

    /// A patch diff with the changes in the order they are given.
    pub fn diff_as_given(&mut self, edits: &[Edit]) -> Answer {
        let held = self.held.clone().expect("what the server holds is known");
        let next = tree_of(&held, edits);
        self.generation += 1;
        self.say(client_message::Kind::ApplyPatchDiff(proto::ApplyPatchDiff {
            parent: Bytes::copy_from_slice(held.id().as_bytes()),
            next: id_of(next.as_ref()),
            generation: self.generation,
            frame: Some(proto::Frame {
                changes: edits.iter().map(Edit::change).collect(),
                contents: contents(edits.iter()),
                changes_end: true,
                end: true,
            }),
        }));
        self.settle(next)
    }

    /// A patch diff.
    pub fn diff(&mut self, edits: &[Edit]) -> Answer {
        self.diff_as_given(&sorted(edits))
    }

    /// A whole patch of these puts; managed paths it does not name are answered with `removal`.
    pub fn whole(&mut self, puts: &[Edit], removal: fn(Bytes) -> Edit) -> Answer {
        self.whole_answering(puts, |extra| extra.into_iter().map(removal).collect())
    }

    /// A whole patch whose question about managed paths it does not name is answered as the test likes.
    pub fn whole_answering(
        &mut self,
        puts: &[Edit],
        removals: impl FnOnce(Vec<Bytes>) -> Vec<Edit>,
    ) -> Answer {
        let edits = sorted(puts);
        let next = tree_of(&Dir::empty(HASH), &edits);
        self.generation += 1;
        self.say(client_message::Kind::ApplyPatch(proto::ApplyPatch {
            base: Bytes::new(),
            next: id_of(next.as_ref()),
            generation: self.generation,
            frame: Some(proto::Frame {
                changes: edits.iter().map(Edit::change).collect(),
                changes_end: true,
                ..proto::Frame::default()
            }),
        }));
        let (mut changes, mut extra) = (Vec::new(), Vec::new());
        loop {
            match self.receive() {
                Some(server_message::Kind::Wanted(wanted)) => {
                    changes.extend(wanted.changes);
                    extra.extend(wanted.extra);
                    if !wanted.more {
                        break;
                    }
                }
                Some(server_message::Kind::Refusal(refusal)) => return Answer::Refused(refusal),
                None => return Answer::Closed,
                Some(other) => panic!("an answer to something else: {other:?}"),
            }
        }
        self.say(client_message::Kind::Frame(proto::Frame {
            changes: removals(extra).iter().map(Edit::change).collect(),
            contents: contents(changes.iter().map(|i| &edits[*i as usize])),
            end: true,
            ..proto::Frame::default()
        }));
        self.settle(next)
    }

    /// Waits for the answer and takes it into account.
    fn settle(&mut self, next: Option<Arc<Dir>>) -> Answer {
        let parent = self.held.take();
        let answer = self.answer();
        self.held = match &answer {
            Answer::Ack(ack) => after(parent, next, ack),
            Answer::Refused(_) | Answer::Closed => parent,
        };
        answer
    }

    /// The server does all of this, and the disk shows it.
    #[track_caller]
    pub fn takes(&mut self, edits: &[Edit]) -> proto::Ack {
        let ack = self.diff(edits).acked();
        assert_eq!(ack.refused, [], "nothing is withheld");
        let held = self.held.as_ref().expect("the ack names the tree that was sent");
        assert_eq!(ack.id, held.id().as_bytes());
        for edit in edits {
            edit.assert_on_disk(&self.workspace);
        }
        ack
    }

    /// The server leaves exactly `blocked` undone and does what else the patch holds.
    #[track_caller]
    pub fn blocks(&mut self, edits: &[Edit], blocked: &[&str]) -> proto::Ack {
        let beside = file("zz-beside", format!("beside patch {}", self.generation));
        let all: Vec<Edit> = edits.iter().cloned().chain([beside]).collect();
        let ack = self.diff(&all).acked();
        let refused: Vec<&[u8]> = ack.refused.iter().map(|refused| &refused.path[..]).collect();
        let blocked: Vec<&[u8]> = blocked.iter().map(|path| path.as_bytes()).collect();
        assert_eq!(refused, blocked, "{:?}", ack.refused);
        for edit in all.iter().filter(|edit| !blocked.contains(&&edit.path[..])) {
            edit.assert_on_disk(&self.workspace);
        }
        ack
    }

    /// The server does nothing of this and says so.
    #[track_caller]
    pub fn refuses(&mut self, edits: &[Edit]) -> proto::Refusal {
        let beside = file("zz-beside", "would be written if anything were");
        let all: Vec<Edit> = edits.iter().cloned().chain([beside]).collect();
        self.refuses_as_given(&sorted(&all))
    }

    /// As [`Session::refuses`], with nothing added and the order kept.
    #[track_caller]
    pub fn refuses_as_given(&mut self, edits: &[Edit]) -> proto::Refusal {
        let before = self.files();
        let refusal = self.diff_as_given(edits).refused();
        before.assert_same(&self.files(), "a refused patch: the workspace");
        if refusal.generation == 0 {
            let end = self.receive();
            assert!(end.is_none(), "a broken rule ends the stream: {end:?}");
        }
        refusal
    }

    fn files(&self) -> tree::Tree {
        tree::Tree::of(&self.workspace, Some(&self.workspace.join(".git")))
    }
}

fn sorted(edits: &[Edit]) -> Vec<Edit> {
    let mut edits = edits.to_vec();
    edits.sort_by_key(Edit::sort_key);
    edits
}

/// Each content once.
fn contents<'a>(edits: impl Iterator<Item = &'a Edit>) -> Vec<proto::Content> {
    let mut contents: Vec<proto::Content> = Vec::new();
    for content in edits.filter_map(Edit::content) {
        if contents.iter().all(|known| known.id != content.id) {
            contents.push(content);
        }
    }
    contents
}

/// The tree these edits lead to, if they lead to one.
fn tree_of(held: &Arc<Dir>, edits: &[Edit]) -> Option<Arc<Dir>> {
    let edits: Vec<_> = edits.iter().map(Edit::leaf).collect::<Option<_>>()?;
    if !edits.is_sorted_by(|a, b| a.0 < b.0) {
        return None;
    }
    held.edit(&edits).ok()
}

fn id_of(tree: Option<&Arc<Dir>>) -> Bytes {
    tree.map_or(Bytes::from_static(&NO_ID), |tree| Bytes::copy_from_slice(tree.id().as_bytes()))
}

/// What the server holds after an ack: the refused paths are as they were, or no longer managed.
fn after(parent: Option<Arc<Dir>>, next: Option<Arc<Dir>>, ack: &proto::Ack) -> Option<Arc<Dir>> {
    let next = next?;
    let id = PatchId::from_bytes(&ack.id).expect("an ack names a tree");
    let refused: Vec<RelPath> = ack.refused.iter().filter_map(|r| RelPath::new(&r.path).ok()).collect();
    let as_in = |tree: &Arc<Dir>| {
        let mixed = Snapshot::of(next.clone()).with_paths_of(&Snapshot::of(tree.clone()), &refused);
        mixed.ok().map(|mixed| mixed.root().clone())
    };
    let candidates = [Some(next.clone()), parent.as_ref().and_then(as_in), as_in(&Dir::empty(HASH))];
    candidates.into_iter().flatten().find(|tree| tree.id() == id)
}
