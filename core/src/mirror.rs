//! Keeping one server equal to one repo.
//!
//! [`session`] decides, knowing no task, socket or clock, and beside it [`baseline`] does for the history; [`client`]
//! is the task that runs both against a real stream; [`outlet`] turns patches into messages, describing contents by
//! what the server has (`delta`) and keeping what goes in the background short (`credit`); `upload` sends the
//! history's packs. [`visit`] talks to a server beside all sessions.

pub mod baseline;
pub mod client;
mod credit;
mod delta;
mod lot;
pub mod outlet;
pub mod session;
mod upload;
pub mod visit;
