//! Applies gitsync patches to workspaces below one root directory.

mod beside;
pub mod cli;
pub mod config;
pub mod conversation;
pub mod epoch;
pub mod history;
mod intake;
mod listen;
pub mod memory;
pub mod plan;
pub mod root;
mod service;
pub mod socket;
pub mod workspace;

pub use listen::{serve_io, serve_tcp, serve_unix};
pub use service::{Options, Service, Watch};
