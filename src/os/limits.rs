//! Memory and descriptor limits of this process.
//!
//! Owns the reading of `/proc` and of the control groups' files. Never sets a
//! limit and never caches one: they change while a process runs.

use std::path::{Component, Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// From here on a value of the first kind of control groups means "no limit".
const UNLIMITED: u64 = 1 << 62;

/// Which of the two kinds of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    First,
    Second,
}

impl Kind {
    fn limit_file(self) -> &'static str {
        match self {
            Kind::First => "memory.limit_in_bytes",
            Kind::Second => "memory.max",
        }
    }

    fn usage_file(self) -> &'static str {
        match self {
            Kind::First => "memory.usage_in_bytes",
            Kind::Second => "memory.current",
        }
    }

    fn kills_file(self) -> &'static str {
        match self {
            Kind::First => "memory.oom_control",
            Kind::Second => "memory.events",
        }
    }

    /// The page cache in `memory.stat`, this group's and those below.
    fn cache_keys(self) -> [&'static str; 2] {
        match self {
            Kind::First => ["total_inactive_file", "total_active_file"],
            Kind::Second => ["inactive_file", "active_file"],
        }
    }
}

/// The directories of one memory group and its ancestors, as far as they are
/// visible.
#[derive(Debug, PartialEq, Eq)]
struct Groups {
    kind: Kind,
    top: PathBuf,
    own: PathBuf,
}

/// How many more bytes the memory control groups of this process let it use:
/// the smallest distance to the limit among its group and all the ancestors
/// that are visible. Page cache counts as free, since the kernel gives it up
/// before it refuses. `None` if no limit is to be seen.
pub fn memory_headroom() -> Option<u64> {
    groups(&text("/proc/self/cgroup")?, &text("/proc/self/mountinfo")?)
        .iter()
        .flat_map(|groups| {
            levels(groups).filter_map(|level| {
                headroom(
                    groups.kind,
                    &text(level.join(groups.kind.limit_file()))?,
                    &text(level.join(groups.kind.usage_file()))?,
                    &text(level.join("memory.stat")).unwrap_or_default(),
                )
            })
        })
        .min()
}

/// How many bytes the whole machine could hand out without swapping
/// (`MemAvailable`). `None` if the kernel does not say.
pub fn memory_available() -> Option<u64> {
    available(&text("/proc/meminfo")?)
}

/// Where the kernel counts the processes that it has killed for want of memory.
#[derive(Debug)]
pub struct OomKills {
    files: Vec<PathBuf>,
}

impl OomKills {
    /// In the memory control group that this process is in now; where that does not say, on the whole machine.
    /// Finding it costs ten times what reading it does.
    pub fn find() -> Self {
        let groups = || Some(groups(&text("/proc/self/cgroup")?, &text("/proc/self/mountinfo")?));
        let files = groups().into_iter().flatten().map(|groups| groups.own.join(groups.kind.kills_file()));
        let files: Vec<PathBuf> =
            files.filter(|file| text(file).is_some_and(|text| kills(&text).is_some())).collect();
        Self { files: if files.is_empty() { vec!["/proc/vmstat".into()] } else { files } }
    }

    /// How many there have been so far. `None` if the kernel does not say.
    pub fn count(&self) -> Option<u64> {
        self.files.iter().filter_map(|file| kills(&text(file)?)).reduce(u64::saturating_add)
    }
}

/// How many descriptors this process may have open (the soft limit);
/// `u64::MAX` if there is no limit.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds the memory groups of a process in the texts of its `cgroup` and
/// `mountinfo` files: at most one of each kind.
fn groups(cgroup: &str, mountinfo: &str) -> Vec<Groups> {
    let paths = cgroup.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if number == "0" && controllers.is_empty() {
            Some((Kind::Second, path))
        } else if controllers.split(',').any(|name| name == "memory") {
            Some((Kind::First, path))
        } else {
            None
        }
    });
    paths
        .filter_map(|(kind, path)| {
            let mounts = mountinfo.lines().filter_map(mount);
            let found: Vec<Groups> = mounts
                .filter(|mount| mount.kind == kind)
                .map(|mount| mount.groups(Path::new(path)))
                .collect();
            // A mount that shows this very group beats one that does not.
            let deepest = found.into_iter().rev();
            deepest.max_by_key(|groups| groups.own.components().count())
        })
        .collect()
}

/// One mount of a hierarchy that may control memory.
struct Mount {
    kind: Kind,
    root: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// The directories for the group at `path` of the hierarchy. If the mount
    /// does not show that path (it is outside of what a container sees), its
    /// top is the nearest ancestor to be seen.
    fn groups(self, path: &Path) -> Groups {
        let upwards = path.components().any(|part| part == Component::ParentDir);
        let own = match path.strip_prefix(&self.root) {
            Ok(below) if !upwards => self.at.join(below),
            _ => self.at.clone(),
        };
        Groups { kind: self.kind, top: self.at, own }
    }
}

/// Reads one line of `mountinfo`: `id parent device root point options
/// [tags...] - type source options`.
fn mount(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, at) = (place.next()?, place.next()?);
    let mut what = what.split(' ');
    let (kind, options) = (what.next()?, what.nth(1)?);
    let kind = match kind {
        "cgroup2" => Kind::Second,
        "cgroup" if options.split(',').any(|option| option == "memory") => Kind::First,
        _ => return None,
    };
    Some(Mount { kind, root: unescape(root).into(), at: unescape(at).into() })
}

/// Undoes the octal escapes of blanks and backslashes in a mount's paths.
fn unescape(path: &str) -> String {
    let path = path.replace("\\040", " ").replace("\\011", "\t");
    path.replace("\\012", "\n").replace("\\134", "\\")
}

/// The group's directory and those above it, up to the mount point.
fn levels(groups: &Groups) -> impl Iterator<Item = &Path> {
    let ancestors = groups.own.ancestors();
    ancestors.take_while(|level| level.starts_with(&groups.top))
}

/// The bytes left below one group's limit, from the texts of its files; `None`
/// if it has none.
fn headroom(kind: Kind, limit: &str, usage: &str, stat: &str) -> Option<u64> {
    // "max" is no number, and means that there is no limit.
    let limit: u64 = limit.trim().parse().ok()?;
    if limit >= UNLIMITED {
        return None;
    }
    let usage: u64 = usage.trim().parse().ok()?;
    let cache = stat.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        kind.cache_keys().contains(&key).then_some(())?;
        value.trim().parse::<u64>().ok()
    });
    let reclaimable = cache.fold(0, u64::saturating_add);
    Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
}

/// The count of kills in any of the files that have one.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn available(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let value = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn found(kind: Kind, top: &str, own: &str) -> Groups {
        Groups { kind, top: top.into(), own: own.into() }
    }

    #[test]
    fn both_kinds_are_found_side_by_side() {
        let cgroup = "9:name=systemd:/\n4:hugetlb,memory:/a/b\n1:cpu:/\n0::/c\n";
        assert_eq!(
            groups(cgroup, MIXED),
            [
                found(Kind::First, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a/b"),
                found(Kind::Second, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/c"),
            ]
        );
        assert!(groups(cgroup, "garbage\n").is_empty());
    }

    #[test]
    fn a_mount_of_a_part_shows_paths_below_that_part() {
        let line = "5 4 0:2 /pod/x /sys/fs/my\\040groups ro - cgroup2 none rw\n";
        let own = |path: &str| groups(&format!("0::{path}\n"), line).remove(0).own;
        assert_eq!(own("/pod/x/y"), Path::new("/sys/fs/my groups/y"));
        assert_eq!(own("/pod/x"), Path::new("/sys/fs/my groups/"));
        assert_eq!(own("/pod/other"), Path::new("/sys/fs/my groups"));
        assert_eq!(own("/../sibling"), Path::new("/sys/fs/my groups"));
    }

    #[test]
    fn the_mount_that_shows_the_group_is_preferred() {
        let lines = "5 4 0:2 /pod /a rw - cgroup2 none rw\n6 4 0:2 / /b rw - cgroup2 none rw\n";
        let groups = groups("0::/user/me\n", lines);
        assert_eq!(groups, [found(Kind::Second, "/b", "/b/user/me")]);
    }

    #[test]
    fn levels_end_at_the_mount_point() {
        let groups = found(Kind::Second, "/sys/fs/cgroup", "/sys/fs/cgroup/a/b");
        let levels: Vec<&Path> = levels(&groups).collect();
        assert_eq!(levels, ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(Path::new));
    }

    #[test]
    fn cache_counts_as_free() {
        let stat = "anon 5\nfile 90\ninactive_file 30\nactive_file 20\ninactive_anon 9\n";
        assert_eq!(headroom(Kind::Second, "1000\n", "400\n", stat), Some(650));
        assert_eq!(headroom(Kind::Second, "1000\n", "400\n", ""), Some(600));
        let stat = "inactive_file 1\ntotal_inactive_file 30\ntotal_active_file 20\n";
        assert_eq!(headroom(Kind::First, "1000\n", "400\n", stat), Some(650));
        // Counted at different moments, the cache may exceed the usage.
        assert_eq!(headroom(Kind::First, "1000\n", "40\n", stat), Some(1000));
        assert_eq!(headroom(Kind::First, "100\n", "400\n", ""), Some(0));
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(headroom(Kind::Second, "max\n", "400\n", ""), None);
        let most = "9223372036854771712\n";
        assert_eq!(headroom(Kind::First, most, "400\n", ""), None);
        assert_eq!(headroom(Kind::Second, "1000\n", "", ""), None);
    }

    #[test]
    fn available_memory_is_in_bytes() {
        let meminfo = "MemTotal:  99 kB\nMemFree:  1 kB\nMemAvailable:    3 kB\n";
        assert_eq!(available(meminfo), Some(3072));
        assert_eq!(available("MemTotal:  99 kB\n"), None);
    }

    #[test]
    fn kills_for_want_of_memory_are_counted() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(kills("low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"), Some(5));
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\n"), None);
        // Linux has counted since 4.13.
        assert!(OomKills::find().count().is_some());
        assert!(OomKills { files: vec!["/proc/vmstat".into()] }.count().is_some());
    }

    #[test]
    fn this_process_has_plausible_limits() {
        assert!(memory_available().unwrap() > 1 << 20);
        assert!(memory_headroom().is_none_or(|bytes| bytes < UNLIMITED));
        assert!(descriptor_limit() > 3);
    }
}
