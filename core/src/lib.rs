//! The sync engine behind `gitsync-tui` and `gitsync-server`: prints nothing, listens on nothing.

#![forbid(unsafe_code)]

pub mod config;

pub mod engine;
pub mod mirror;
pub mod model;
pub mod repo;
pub mod transport;
pub mod wire;
