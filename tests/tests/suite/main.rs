//! The promises to users, each checked on the real programs with real git and real disks.
//!
//! Tests are named by what a user may rely on. `P1` to `P10` in comments are the promises of the design.

mod adopt;
mod awkward;
mod bad_input;
mod beside;
mod disk_full;
mod editors;
mod exact;
mod exit_codes;
mod fetch;
mod first_sync;
mod foreign;
mod git_quiet;
mod history;
mod incidents;
mod kills;
mod large;
mod methods;
mod output;
mod patch_id_script;
mod random;
mod read_only;
mod refused;
mod reload;
mod replaced;
mod restarts;
mod scale;
mod single_changes;
mod switch_back;
mod takeover;
mod test_of_the_test;
