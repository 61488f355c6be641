//! Keeping one server equal to one repo.
//!
//! [`session`] decides, knowing no task, socket or clock; [`client`] is the task that runs it against
//! a real stream; [`outlet`] turns patches into messages, describing contents by what the server has (`delta`) and
//! keeping what goes in the background short (`credit`). [`visit`] talks to a server beside all sessions.

pub mod client;
mod credit;
mod delta;
mod lot;
pub mod outlet;
pub mod session;
pub mod visit;
