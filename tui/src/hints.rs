//! What a person can do about an error. Core states facts; the advice is added here, at the edge.

use gitsync_core::model::ErrorCode;

/// The next step after a command that looks once: it has stopped nothing, so nothing is to be accepted.
pub fn next_step_of_task(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Repository => {
            "check that the path in the config is the git working tree you mean and can read, with `git -C PATH status`"
        }
        _ => next_step(code),
    }
}

/// The next step for one kind of error: a lowercase fragment.
pub fn next_step(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unreachable => {
            "check that gitsync-server runs there (or can write there, if it is `embedded:`) and that the url in the config is right; gitsync tries again by itself"
        }
        ErrorCode::Protocol => "run the same version of gitsync-tui and gitsync-server on both sides",
        ErrorCode::ParentMismatch | ErrorCode::BaseUnknown => {
            "nothing to do: the session starts again from what the server holds"
        }
        ErrorCode::RemotesDiffer => {
            "another repository lives in this workspace; name another `workspace` in this [[repo]], or give both a remote in common"
        }
        ErrorCode::Locked => {
            "stop that gitsync, or take the workspace over (key `T`, or `gitsync-tui takeover`), or give this repo its own `workspace` in the config"
        }
        ErrorCode::Superseded => {
            "another gitsync writes this workspace now; stop that one, then sync now (key `s`) goes on from here, or take it back (key `T`)"
        }
        ErrorCode::Workspace => {
            "look at that directory on the server: it must be empty, absent or made by gitsync; else choose another `workspace` name"
        }
        ErrorCode::Drift => {
            "someone edited files in the workspace; `gitsync-tui drift TARGET` shows what was kept of them"
        }
        ErrorCode::TooLarge => {
            "leave the file out (`exclude` in the config, or .gitignore), or make it smaller"
        }
        ErrorCode::DiskFull => "free space on the server; gitsync tries again by itself",
        ErrorCode::Refused => "the server's own words say why; its log has more",
        ErrorCode::Brake => {
            "if they are meant to be gone, accept it (key `a`, or `gitsync-tui accept`); if not, bring them back and it goes on by itself"
        }
        ErrorCode::Repository => {
            "check that the path in the config is the git working tree you mean and can read, with `git -C PATH status`; if what is there now is meant, accept it (key `a`, or `gitsync-tui accept`)"
        }
        ErrorCode::ClientState => {
            "make that directory writable for your user, or set $XDG_STATE_HOME to one that is, and start again"
        }
        ErrorCode::History => {
            "files are mirrored all the same; look for a lock or a full disk in the workspace's .git on the server"
        }
        ErrorCode::Internal => "this is a bug in gitsync; please report it with the log (--log-file, -vv)",
    }
}
