//! What the process answers when it ends.
//!
//! The numbers are a promise to scripts. Several outcomes can hold at once (one target halted,
//! another timed out, the user pressed Ctrl-C): [`Exit::worst`] says which one is told.

use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    Done,
    /// A target failed, was not reached in time, or left paths out.
    Incomplete,
    Usage,
    Timeout,
    /// A target stopped until a person decides.
    Halted,
    /// Not one selected server was reached.
    Unreached,
    NoTarget,
    Bug,
    /// Another instance runs with this configuration.
    Running,
    Authentication,
    Config,
    Interrupted,
    StdoutClosed,
}

/// When several hold, the first of these that does is told.
const PRECEDENCE: [Exit; 13] = [
    Exit::StdoutClosed,
    Exit::Interrupted,
    Exit::Bug,
    Exit::Config,
    Exit::Authentication,
    Exit::Halted,
    Exit::Timeout,
    Exit::Unreached,
    Exit::Incomplete,
    // These end the program before any target runs, so they never meet the others.
    Exit::Running,
    Exit::NoTarget,
    Exit::Usage,
    Exit::Done,
];

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Incomplete => 1,
            Exit::Usage => 2,
            Exit::Timeout => 3,
            Exit::Halted => 4,
            Exit::Unreached => 5,
            Exit::NoTarget => 6,
            Exit::Bug => 70,
            Exit::Running => 75,
            Exit::Authentication => 77,
            Exit::Config => 78,
            Exit::Interrupted => 130,
            Exit::StdoutClosed => 141,
        }
    }

    /// The exit of this code; one that is no code of ours is a bug.
    pub fn of_code(code: u8) -> Exit {
        PRECEDENCE.into_iter().find(|exit| exit.code() == code).unwrap_or(Exit::Bug)
    }

    /// The one that is told when all of `exits` hold; [`Exit::Done`] when there are none.
    pub fn worst(exits: impl IntoIterator<Item = Exit>) -> Exit {
        let rank = |exit: &Exit| PRECEDENCE.iter().position(|e| e == exit);
        exits.into_iter().min_by_key(rank).unwrap_or(Exit::Done)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_order_decides() {
        let told = |exits: &[Exit]| Exit::worst(exits.iter().copied()).code();
        assert_eq!(told(&[]), 0);
        assert_eq!(told(&[Exit::Done, Exit::Done]), 0);
        assert_eq!(told(&[Exit::Done, Exit::Incomplete]), 1);
        assert_eq!(told(&[Exit::Incomplete, Exit::Unreached]), 5);
        assert_eq!(told(&[Exit::Unreached, Exit::Timeout]), 3);
        assert_eq!(told(&[Exit::Timeout, Exit::Halted, Exit::Incomplete]), 4);
        assert_eq!(told(&[Exit::Halted, Exit::Authentication]), 77);
        assert_eq!(told(&[Exit::Authentication, Exit::Config]), 78);
        assert_eq!(told(&[Exit::Config, Exit::Bug]), 70);
        assert_eq!(told(&[Exit::Bug, Exit::Interrupted]), 130);
        assert_eq!(told(&[Exit::Interrupted, Exit::StdoutClosed]), 141);
    }

    #[test]
    fn every_exit_has_a_place_and_its_own_code() {
        let mut codes: Vec<u8> = PRECEDENCE.iter().map(|e| e.code()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 70, 75, 77, 78, 130, 141]);
    }
}
