//! Random changes with git as the judge: no divergence, ever.
//!
//! `GITSYNC_SEED` and `GITSYNC_OPS` choose other and longer runs.

use gitsync_tests::lab::Lab;
use gitsync_tests::ops::Ops;
use gitsync_tests::rounds::{Moment, Outcome, Plan, Rounds};

fn lab_with_ballast(name: &str) -> Lab {
    let lab = Lab::new(name);
    Ops::plant_ballast(&lab.repo);
    lab
}

/// Both transports at once: an embedded server and a process on loopback.
const SERVERS: [&str; 2] = ["near", "far"];

fn announce(plan: Plan) {
    eprintln!("GITSYNC_SEED={} GITSYNC_OPS={}", plan.seed, plan.ops);
}

#[track_caller]
fn assert_complete(outcome: &Outcome, plan: Plan) {
    eprintln!("{outcome:?}");
    assert_eq!(outcome.ops, plan.ops);
    assert!(outcome.untouched > 0);
}

#[test]
fn random_changes_never_diverge() {
    let plan = Plan { seed: 1, ops: 500 }.or_from_env();
    announce(plan);
    let lab = lab_with_ballast("random");
    let far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let outcome = Rounds::new(&lab, &SERVERS, plan).run(&mut lab.client(), |_, _| {});
    assert_complete(&outcome, plan);
}

/// P9: the same while either side is killed in the middle of its work, several times a minute.
#[test]
fn random_changes_never_diverge_when_either_side_crashes() {
    let plan = Plan { seed: 2, ops: 200 }.or_from_env();
    announce(plan);
    let lab = lab_with_ballast("crashes");
    let mut far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let outcome = Rounds::new(&lab, &SERVERS, plan).run(&mut lab.client(), |client, moment| match moment {
        Moment::Change { roll: 0..4 } if far.is_up() => far.kill(),
        Moment::Change { roll: 4..30 } | Moment::Quiet if !far.is_up() => far.restart(),
        Moment::Change { roll: 95.. } => {
            client.kill();
            *client = lab.client();
        }
        _ => {}
    });
    assert_complete(&outcome, plan);
}
