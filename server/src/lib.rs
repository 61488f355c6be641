//! Applies gitsync patches to workspaces below one root directory.

pub mod cli;
pub mod conversation;
pub mod epoch;
pub mod history;
mod listen;
pub mod plan;
mod service;
pub mod workspace;

pub use listen::{serve_io, serve_tcp};
pub use service::{Options, Service};
