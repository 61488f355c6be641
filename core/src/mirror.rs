//! Keeping one server equal to one repo.
//!
//! [`session`] decides, knowing no task, socket or clock; [`client`] is the task that runs it against
//! a real stream; [`outlet`] turns patches into messages.

pub mod client;
pub mod outlet;
pub mod session;
