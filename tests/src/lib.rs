//! What the end-to-end suite is made of: real programs, real git, real directories.
//!
//! The suite knows the programs only from outside: their flags, their output, their exit codes and the
//! files they leave. Nothing here uses a crate of the product, so a shared mistake cannot hide on both
//! sides. What a working tree should look like on a server is decided by git and `lstat` alone
//! ([`oracle`]).
//!
//! This is test code: a helper that cannot do its work panics with what it was doing. Tests wait for a
//! state, never for a duration; every wait has a deadline and says what it saw when it passes.

pub mod bin;
pub mod client;
pub mod event;
pub mod faces;
pub mod git;
pub mod history;
pub mod lab;
pub mod link;
pub mod mirrored;
pub mod ops;
pub mod oracle;
pub mod parent;
pub mod process;
pub mod recording;
pub mod rounds;
pub mod server;
pub mod skip;
pub mod tree;
