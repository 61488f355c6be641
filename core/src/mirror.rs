//! Keeping one server equal to one repo.
//!
//! [`session`] decides, knowing no task, socket or clock; [`client`] is the task that runs it against
//! a real stream; [`outlet`] turns patches into messages. [`visit`] talks to a server beside all sessions.

pub mod client;
pub mod outlet;
pub mod session;
pub mod visit;
