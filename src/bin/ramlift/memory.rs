//! How much memory there is to keep files in.

use std::fs;
use std::path::Path;

/// Bytes that this process could have, its cached files included: what the
/// machine has left, or less if a control group allows less. `None` if the
/// system does not tell.
pub(crate) fn available() -> Option<u64> {
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let of_group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    of_machine.into_iter().chain(of_group).min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit of the process's control group and those above it, in either
/// version. `groups` is `/proc/self/cgroup`: lines of `number:controllers:path`.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        least_limit(&root, &root.join(group.trim_start_matches('/')), file)
    });
    limits.min()
}

/// The least number that `file` has in `group` and the directories above it, up
/// to `root`. No number is no limit.
fn least_limit(root: &Path, group: &Path, file: &str) -> Option<u64> {
    let above = group.ancestors().take_while(|above| above.starts_with(root));
    above.filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("user.slice/run.scope");
        fs::create_dir_all(&group).unwrap();
        let limit = |groups| group_limit(groups, root.path());
        assert_eq!(limit("0::/user.slice/run.scope\n"), None);
        fs::write(group.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("user.slice/memory.max"), "1073741824\n").unwrap();
        assert_eq!(limit("3:cpu:/x\n0::/user.slice/run.scope\n"), Some(1 << 30));
        fs::write(group.join("memory.max"), "4096\n").unwrap();
        assert_eq!(limit("0::/user.slice/run.scope\n"), Some(4096));
        assert_eq!(limit("1:memory:/x\n"), None);
        fs::create_dir_all(root.path().join("memory/x")).unwrap();
        fs::write(root.path().join("memory/x/memory.limit_in_bytes"), "8192\n").unwrap();
        assert_eq!(limit("1:memory:/x\n"), Some(8192));
        assert_eq!(limit("4:memory:/gone/from/here\n0::/user.slice/run.scope\n"), Some(4096));
    }

    #[test]
    fn what_the_machine_has_left_is_read() {
        let text = "MemTotal:       24600000 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(mem_available(text), Some(23_000_000 * 1024));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    }
}
