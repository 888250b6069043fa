//! Networks of a test: namespaces of the kernel, joined by cables of their own.
//!
//! Invariant: nothing outside the namespaces is changed, their addresses mean nothing outside, and they go
//! with the value; those that a killed test left go with the next test.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::line::{self, Line};
use crate::site::Site;

/// Names of our namespaces begin with this; the process id follows.
const PREFIX: &str = "sluice-";

/// The namespaces of one test.
pub struct Net {
    names: Vec<String>,
    cables: u32,
}

/// One namespace of a [`Net`].
#[derive(Debug, Clone)]
pub struct Space(String);

impl Net {
    /// A net, where this machine permits one; otherwise the test is left out.
    pub fn new() -> Option<Self> {
        if let Err(why) = permitted() {
            crate::skip(&why);
            return None;
        }
        sweep();
        Some(Self { names: Vec::new(), cables: 0 })
    }

    /// One more namespace, with nothing but its loopback.
    pub fn space(&mut self) -> Space {
        let name = format!("{PREFIX}{}-{}", std::process::id(), self.names.len());
        ip(&["netns", "add", &name]);
        self.names.push(name.clone());
        let space = Space(name);
        space.ip(&["link", "set", "lo", "up"]);
        space
    }

    /// Joins two namespaces by a cable with an address (`10.77.1.1/24`) at each end; gives the names of both ends.
    pub fn cable(&mut self, one: (&Space, &str), other: (&Space, &str)) -> [String; 2] {
        self.cables += 1;
        let ends = [format!("c{}a", self.cables), format!("c{}b", self.cables)];
        ip(&[
            "link", "add", &ends[0], "netns", &one.0.0, "type", "veth", "peer", "name", &ends[1], "netns", &other.0.0,
        ]);
        for (end, (space, address)) in ends.iter().zip([one, other]) {
            space.ip(&["addr", "add", address, "dev", end]);
            space.ip(&["link", "set", end, "up"]);
        }
        ends
    }

    /// Joins two namespaces by a line that can be made a bad one; none when this machine permits none, and the
    /// test is left out.
    pub fn line(&mut self, one: (&Space, &str), other: (&Space, &str), seed: u64) -> Option<Line> {
        if let Some(why) = line::forbidden() {
            crate::skip(&why);
            return None;
        }
        self.cables += 1;
        let name = format!("l{}", self.cables);
        Some(Line::between(&name, [one, other], false, seed).expect("root may make a device"))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            // Processes in it keep it alive until they end; its name goes at once.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Space {
    /// One that somebody else made and removes.
    pub fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Runs `ip` in the namespace.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.0], args].concat());
    }

    /// Runs any program in the namespace and gives what it prints.
    #[track_caller]
    pub fn run(&self, program: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.0], program].concat())
    }

    /// Lets a site's process live here.
    pub fn house(&self, site: &mut Site) {
        site.wrap(&["ip", "netns", "exec", &self.0]);
    }

    /// The kernel's file for it.
    pub fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    run("ip", args);
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program} does not start: {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Tries what every test here needs, in namespaces that are gone again afterwards.
fn permitted() -> Result<(), String> {
    let names = ["x", "y"].map(|end| format!("{PREFIX}{}-{end}", std::process::id()));
    let steps: [&[&str]; 3] = [
        &["netns", "add", &names[0]],
        &["netns", "add", &names[1]],
        &["-n", &names[0], "link", "add", "t0", "type", "veth", "peer", "name", "t1", "netns", &names[1]],
    ];
    let tried = steps.iter().try_for_each(|args| match Command::new("ip").args(*args).output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(format!("`ip {}`: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim())),
        Err(e) => Err(format!("`ip` does not start ({e}): run tools/setup.sh")),
    });
    for name in &names {
        let _ = Command::new("ip").args(["netns", "del", name]).output();
    }
    tried
}

/// Removes namespaces of processes that are gone.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.filter_map(|e| e.ok()?.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|p| !Path::new("/proc").join(p).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
