//! Reading the client's side: which repository it is, what its working tree holds, what changes.
//!
//! Everything here is read-only: no index write, no ref, no object, no lock (promise P6). The work is
//! blocking and belongs to one thread per repo, [`observer`]; what leaves it are snapshots.

mod aside;
pub mod blocks;
mod burst;
pub mod content;
pub mod disk;
pub mod history;
mod index;
mod keeper;
mod large;
pub mod observer;
mod open;
mod place;
pub mod reading;
mod remotes;
mod rules;
mod scan;
mod settle;
mod stat_cache;
mod walk;
mod watch;

pub use open::{Head, OpenError, Repo};
pub use place::RepoIdentity;
pub use remotes::{normalised, remotes_of};
pub use rules::Selection;
