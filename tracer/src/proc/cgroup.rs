//! Where a process's cgroups are.

use super::target::read;

/// A cgroup of a process, in the hierarchy that has the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Where the hierarchy is mounted.
    pub mount: String,
    /// Below that; begins with `/`.
    pub path: String,
    /// Of the unified hierarchy (v2).
    pub unified: bool,
}

impl Cgroup {
    /// One of its files.
    #[must_use]
    pub fn read(&self, file: &str) -> Option<String> {
        read(&format!("{}{}/{file}", self.mount, self.path)).ok()
    }

    /// The one that it is in; `None` of the uppermost.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (above, _) = self.path.trim_end_matches('/').rsplit_once('/')?;
        Some(Self {
            path: above.to_owned(),
            ..self.clone()
        })
    }
}

/// The process's cgroups that may have the controller, v1 or v2, where they are mounted at the usual place.
#[must_use]
pub fn cgroups(pid: u32, controller: &str) -> Vec<Cgroup> {
    match (read(&format!("/proc/{pid}/cgroup")), read("/proc/self/mounts")) {
        (Ok(cgroups), Ok(mounts)) => parse(&cgroups, &mounts, controller),
        _ => Vec::new(),
    }
}

fn parse(cgroups: &str, mounts: &str, controller: &str) -> Vec<Cgroup> {
    let has = |list: &str| list.split(',').any(|name| name == controller);
    let cgroup = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let unified = controllers.is_empty();
        if !unified && !has(controllers) {
            return None;
        }
        let mount = mounts.lines().find_map(|mount| {
            let mut fields = mount.split(' ');
            let (_, place, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let fits = if unified {
                kind == "cgroup2"
            } else {
                kind == "cgroup" && has(options)
            };
            fits.then(|| place.to_owned())
        })?;
        Some(Cgroup {
            mount,
            path: path.to_owned(),
            unified,
        })
    };
    cgroups.lines().filter_map(cgroup).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "proc /proc proc rw 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpuacct,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
";

    #[test]
    fn the_hierarchy_is_the_one_with_the_controller() {
        let own = "4:memory:/shop/api\n2:cpu,cpuacct:/\n0::/shop\nnonsense";
        let found = parse(own, MOUNTS, "memory");
        let places: Vec<String> = found
            .iter()
            .map(|cgroup| format!("{}{}", cgroup.mount, cgroup.path))
            .collect();
        assert_eq!(
            places,
            ["/sys/fs/cgroup/memory/shop/api", "/sys/fs/cgroup/unified/shop"]
        );
        assert!(!found[0].unified && found[1].unified);
        assert_eq!(parse(own, "", "memory"), []);
    }

    #[test]
    fn above_a_cgroup_are_those_that_it_is_in() {
        let mut above = Vec::new();
        let mut at = parse("0::/a/b", MOUNTS, "cpu").pop();
        while let Some(cgroup) = at {
            at = cgroup.parent();
            above.push(cgroup.path);
        }
        assert_eq!(above, ["/a/b", "/a", ""]);
    }
}
