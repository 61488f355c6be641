//! Random changes with git as the judge: no divergence, ever.
//!
//! Over three transports at once, while programs are killed and somebody works on the servers; what is checked is in
//! [`gitsync_tests::rounds`]. `GITSYNC_SEED` and `GITSYNC_OPS` choose other and longer runs.

use gitsync_tests::bin;
use gitsync_tests::client::Client;
use gitsync_tests::lab::Lab;
use gitsync_tests::ops::Ops;
use gitsync_tests::rounds::{Moment, Outcome, Plan, Rounds};
use gitsync_tests::server::Server;

/// The in-process server of a run.
const NEAR: &str = "near";

/// The server processes of a run, by name: one on loopback and, where the programs can, one on a Unix socket.
struct Fleet {
    servers: Vec<(&'static str, Server)>,
    sweeps: bool,
}

impl Fleet {
    /// Starts all servers and mirrors the lab's repository to them.
    fn start(lab: &Lab) -> Self {
        let sweeps = bin::server_takes("--drift-scan");
        let options: &[&str] = if sweeps { &["--drift-scan", "100ms"] } else { &[] };
        let mut servers = vec![("far", lab.serve_with("far", "127.0.0.1:0", options))];
        if bin::server_takes("unix:") {
            servers.push(("local", lab.serve_with("local", &lab.unix_url("local"), options)));
        }
        let near = lab.embedded(NEAR);
        let mut urls = vec![(NEAR, near)];
        urls.extend(servers.iter().map(|(name, server)| (*name, server.url())));
        let urls: Vec<(&str, &str)> = urls.iter().map(|(name, url)| (*name, url.as_str())).collect();
        lab.configure(&urls);
        Self { servers, sweeps }
    }

    fn names(&self) -> Vec<&'static str> {
        [NEAR].into_iter().chain(self.processes()).collect()
    }

    fn processes(&self) -> Vec<&'static str> {
        self.servers.iter().map(|(name, _)| *name).collect()
    }

    fn rounds<'a>(&self, lab: &'a Lab, plan: Plan) -> Rounds<'a> {
        let rounds = Rounds::new(lab, &self.names(), plan);
        if self.sweeps { rounds.with_sweeps(&self.processes()) } else { rounds }
    }

    fn bring_back(&mut self) {
        for (_, server) in self.servers.iter_mut().filter(|(_, server)| !server.is_up()) {
            server.restart();
        }
    }

    fn kill_all(&mut self) {
        for (_, server) in self.servers.iter_mut().filter(|(_, server)| server.is_up()) {
            server.kill();
        }
    }

    /// Ends everything by force and starts it again.
    fn reopen(&mut self, lab: &Lab, client: &mut Client) {
        client.kill();
        self.kill_all();
        self.bring_back();
        *client = lab.client();
    }
}

fn run(name: &str, plan: Plan, crashes: bool) {
    let plan = plan.or_from_env();
    eprintln!("GITSYNC_SEED={} GITSYNC_OPS={}", plan.seed, plan.ops);
    let lab = Lab::new(name);
    Ops::plant_ballast(&lab.repo);
    let mut fleet = Fleet::start(&lab);
    let rounds = fleet.rounds(&lab, plan);
    let names = fleet.names();
    let mut client = lab.client();
    let outcome = rounds.run(&mut client, |client, moment| match moment {
        Moment::Reopen => fleet.reopen(&lab, client),
        Moment::Change { roll: 0..4 } if crashes => {
            let count = fleet.servers.len();
            let (_, server) = &mut fleet.servers[client.mark() % count];
            if server.is_up() {
                server.kill();
            }
        }
        Moment::Change { roll: 4..25 } | Moment::Quiet => fleet.bring_back(),
        Moment::Change { roll: 97.. } if crashes => {
            client.kill();
            *client = lab.client();
        }
        _ => {}
    });
    report(&names, &outcome);
    assert_eq!(outcome.ops, plan.ops);
    assert!(outcome.untouched > 0 && outcome.foreign > 0 && outcome.reopened > 0, "{outcome:?}");
    assert!(plan.ops < 300 || outcome.drifts > 0, "{outcome:?}");
}

fn report(servers: &[&str], outcome: &Outcome) {
    eprintln!("{} servers: {outcome:?}", servers.len());
}

#[test]
fn random_changes_never_diverge() {
    run("random", Plan { seed: 1, ops: 1200 }, false);
}

/// P9: the same while either side is killed in the middle of its work, several times a minute.
#[test]
fn random_changes_never_diverge_when_either_side_crashes() {
    run("crashes", Plan { seed: 2, ops: 900 }, true);
}

/// Another seed: each finds its own corners.
#[test]
fn random_changes_never_diverge_whatever_the_seed() {
    run("random-3", Plan { seed: 3, ops: 900 }, true);
}
