//! File systems of other kinds, and what befalls them: a quota that is used up,
//! power that fails, names that know no case, devices that fail under a file.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use support::channel::{Packet, channel};
use support::cli::{Output, Workplace, entries_of, files_in, ramlift_in};
use support::disk::{Disk, succeeds};
use support::fault::{Fault, at_every_call, ramlift_with};
use support::synth::{Block, MULTIFD_FLUSH, RAM_ID, Records, Synth, block_list, noise};

const MARK: &str = ".ramlift-incomplete-";

/// A stream of blocks, each with so many pages of noise.
fn stream_of(blocks: &[(&str, u64)], seed: u64) -> Vec<u8> {
    let mut records = Records::new();
    for (nth, (name, pages)) in blocks.iter().enumerate() {
        for page in 0..*pages {
            records = records.data(name, page << 12, &noise(seed + (nth as u64) * 1_000_000 + page, 4096));
        }
    }
    let blocks: Vec<Block> = blocks.iter().map(|(name, pages)| Block::new(name, pages << 12)).collect();
    let on = r#"{"name": "on", "type": "bool", "size": 1}"#;
    Synth::machine().ram(&blocks, records).device(9, "timer", &[1], on).finish()
}

/// Two streams that have files of the same names, one of them in a directory.
fn streams() -> [Vec<u8>; 2] {
    let blocks = [("main.ram", 24), ("0000:00:02.0/vga.vram", 3)];
    [stream_of(&blocks, 1), stream_of(&blocks, 5_000_000)]
}

#[test]
fn a_quota_that_is_used_up_leaves_nothing() {
    let Some((_disk, home)) = Disk::with_quota("4M") else { return };
    let home = home.to_str().unwrap();
    let place = Workplace::with(&stream_of(&[("main.ram", 4096)], 1));
    let out = format!("{home}/out");
    let ways: [&[&str]; 5] = [
        &[],
        &["--read-once"],
        &["--sync"],
        &["--format", "elf", "--map", "main.ram@0"],
        &["--format", "avml", "--map", "main.ram@0"],
    ];
    for way in ways {
        let output = place.ramlift(&[&["extract", "-q", "stream", "-o", &out], way].concat()).expect_code(1);
        assert!(output.stderr.contains("hint: your quota is used up"), "{way:?}: {output:?}");
        assert_eq!(entries_of(home), [""; 0], "{way:?}");
    }
}

/// Extracts to `out` on a disk, has its power fail before the `nth` of the calls
/// that make, fill, move and sync files, and checks what is there then. Gives
/// whether there was such a call.
fn fail_at_call(disk: &mut Disk, place: &Workplace, nth: u64, args: &[&str], earlier: bool) -> bool {
    let out = disk.join("new/out");
    if args.contains(&"--format") {
        fs::create_dir(disk.join("new")).unwrap();
    }
    let args = [args, &["-o", out.to_str().unwrap(), "--sync", "-q"]].concat();
    let ended = ramlift_with(place.path(), &args, nth, Fault::Signal(9));
    disk.lose_power();
    let is_over = ended.calls < nth;
    assert_eq!(ended.code.is_some(), is_over, "call {nth}: {ended:?}");
    let what = format!("{args:?}, power lost before call {nth} of {}", ended.calls);
    let single = disk.join("new/out.manifest.json");
    let manifest = if args.contains(&"--format") { single } else { out.join("manifest.json") };
    if !manifest.exists() {
        assert!(!is_over, "{what}: no manifest");
        // A directory that was to be new is not there, nor a file of one.
        assert!(earlier || !out.exists(), "{what}: {:?}", files_in(&out));
        return true;
    }
    let verified = place.ramlift(&["verify", manifest.to_str().unwrap()]);
    // What an earlier run made is whole, and beside it may be what is marked.
    let is_marked = |line: &str| line.starts_with(&format!("differs: {MARK}"));
    let is_whole = verified.code == 0 || earlier && verified.text().lines().all(is_marked);
    assert!(is_whole && verified.stderr.is_empty(), "{what}: {verified:?}");
    !is_over
}

/// Has power fail before each call of a run, on a file system of its own each.
/// With `earlier`, what another stream makes is replaced.
fn fail_at_each_call(make: impl Fn() -> Option<Disk>, args: &[&str], earlier: bool) {
    let [stream, other] = streams();
    let place = Workplace::with(&stream);
    fs::write(place.join("other"), other).unwrap();
    for nth in 1.. {
        let Some(mut disk) = make() else { return };
        if earlier {
            let out = disk.join("new/out");
            let args = ["extract", "other", "-q", "--sync", "-o", out.to_str().unwrap()];
            place.ramlift(&args).expect_code(0);
        }
        let is_over = !fail_at_call(&mut disk, &place, nth, args, earlier);
        // Whatever was left, the next run makes good.
        let out = disk.join("new/out");
        let again = ["extract", "stream", "--force", "-q", "-o", out.to_str().unwrap()];
        place.ramlift(&again).expect_code(0);
        place.ramlift(&["verify", out.to_str().unwrap()]).expect_code(0);
        assert_eq!(entries_of(disk.join("new")), ["out"], "call {nth}");
        if is_over {
            return;
        }
    }
}

#[test]
fn what_is_synced_is_whole_or_not_there_whenever_power_fails() {
    fail_at_each_call(Disk::ext4, &["extract", "stream"], false);
}

#[test]
fn what_is_replaced_is_never_mixed_when_power_fails() {
    fail_at_each_call(Disk::ext4, &["extract", "stream", "--force"], true);
}

#[test]
fn nor_is_it_where_a_sync_is_of_one_directory_alone() {
    fail_at_each_call(Disk::btrfs, &["extract", "stream", "--force"], true);
}

#[test]
fn all_directories_are_on_the_disk_before_the_manifest_is_in_its_place() {
    // The file systems above put on the disk in order what they are told in
    // order; others need not.
    const EIO: i32 = 5;
    let [stream, other] = streams();
    let place = || {
        let place = Workplace::with(&stream);
        fs::write(place.join("other"), &other).unwrap();
        place.ramlift(&["extract", "other", "-q", "-o", "out"]).expect_code(0);
        place
    };
    let mut failed = [0; 2];
    at_every_call(
        &["extract", "stream", "-q", "-o", "out", "--force", "--sync"],
        Fault::Errno(EIO),
        place,
        |place, nth, ended| {
            for (count, directory) in failed.iter_mut().zip(["out", "out/0000:00:02.0"]) {
                let text = format!("error: {directory}: Input/output error");
                // Not where what will be there is made.
                if ended.stderr.contains(&text) && ended.stderr.contains("is not complete") {
                    assert_eq!(ended.code, Some(1), "call {nth}");
                    assert!(!place.join("out/manifest.json").exists(), "call {nth}: {ended:?}");
                    *count += 1;
                }
            }
        },
    );
    // That no manifest is there, and all files.
    assert_eq!(failed, [2, 1]);
}

#[test]
fn what_is_synced_outlives_the_loss_of_power_at_the_end() {
    let ways: [&[&str]; 4] = [
        &[],
        &["--read-once"],
        &["--format", "elf", "--map", "main.ram@0"],
        &["--format", "avml", "--map", "main.ram@0"],
    ];
    let [stream, _] = streams();
    let place = Workplace::with(&stream);
    for make in [Disk::ext4, Disk::xfs, Disk::btrfs] {
        for way in ways {
            let Some(mut disk) = make() else { break };
            assert!(!fail_at_call(&mut disk, &place, 10_000, &[&["extract", "stream"], way].concat(), false));
        }
    }
}

#[test]
fn what_is_not_synced_is_not_called_whole_after_power_failed() {
    let [stream, _] = streams();
    let place = Workplace::with(&stream);
    for make in [Disk::ext4, Disk::xfs, Disk::btrfs] {
        let Some(mut disk) = make() else { continue };
        let out = disk.join("out");
        let out = out.to_str().unwrap();
        place.ramlift(&["extract", "stream", "-q", "-o", out]).expect_code(0);
        disk.lose_power();
        let output = place.ramlift(&["verify", out]);
        // Whatever is left of it.
        let is_whole = output.code == 0
            && fs::read(disk.join("out/main.ram")).is_ok_and(|image| {
                image == (0..24).flat_map(|page| noise(1 + page, 4096)).collect::<Vec<u8>>()
            });
        assert!(is_whole || output.code == 1, "{output:?}");
    }
}

/// A directory on a file system where names that differ in case alone are one.
fn places_without_case() -> Vec<Disk> {
    let folding = Disk::new(64 << 20, &["mkfs.ext4", "-q", "-F", "-O", "casefold"]).filter(|disk| {
        fs::create_dir(disk.join("any")).unwrap();
        let is_folding = succeeds("chattr", &["+F", disk.join("any").to_str().unwrap()]);
        if !is_folding {
            eprintln!("SKIPPED: no directories without case on ext4 here");
        }
        is_folding
    });
    let fat = Disk::new(64 << 20, &["mkfs.vfat", "-F", "32"]).inspect(|disk| {
        fs::create_dir(disk.join("any")).unwrap();
    });
    [folding, fat].into_iter().flatten().collect()
}

#[test]
fn blocks_whose_names_differ_in_case_alone_are_kept_apart_where_there_is_none() {
    let blocks =
        [("RAM", 3), ("ram", 5), ("Manifest.json", 1), ("STATE.JSON", 1), ("A/x", 2), ("a/X", 1), ("a", 1)];
    let place = Workplace::with(&stream_of(&blocks, 1));
    for disk in places_without_case() {
        let any = disk.join("any");
        fs::write(any.join("probe"), "").unwrap();
        assert!(any.join("PROBE").exists(), "it has no case");
        fs::remove_file(any.join("probe")).unwrap();
        let out = any.join("out");
        for more in [&[][..], &["--force", "--read-once"], &["--force", "--sync", "--hash", "sha256"]] {
            let args = ["extract", "stream", "-q", "-o", out.to_str().unwrap()];
            place.ramlift(&[&args, more].concat()).expect_code(0);
            let verified = place.ramlift(&["verify", out.to_str().unwrap()]);
            assert_eq!((verified.code, verified.stderr.as_str()), (0, ""), "{more:?}: {verified:?}");
            // Seven images, the manifest, the description and the devices.
            assert_eq!(files_in(&out).len(), 10, "{more:?}: {:?}", files_in(&out));
            assert_eq!(entries_of(&any), ["out"], "{more:?}");
        }
        // A name in other letters is the same file: it is not replaced unasked.
        let again = any.join("OUT");
        let output = place.ramlift(&["extract", "stream", "-o", again.to_str().unwrap()]).expect_code(1);
        assert!(output.stderr.contains("exists and is not empty"), "{output:?}");
        // Nor is the input that is on it.
        fs::copy(place.join("stream"), any.join("in")).unwrap();
        let (input, output) = (any.join("in"), any.join("IN"));
        let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
        let args = ["extract", input, "-o", output, "--force", "--format", "raw", "--map", "RAM@0"];
        let output = place.ramlift(&args).expect_code(1);
        assert!(output.stderr.contains("being read"), "{output:?}");
    }
}

#[test]
fn whatever_the_system_says_is_said_by_its_number() {
    const ESTALE: i32 = 116;
    let [stream, _] = streams();
    let ways: [&[&str]; 2] = [&["-o", "out"], &["-o", "out", "--format", "raw", "--map", "main.ram@0"]];
    for way in ways {
        let args = [&["extract", "stream", "-q"], way].concat();
        let mut failed = 0;
        at_every_call(
            &args,
            Fault::Errno(ESTALE),
            || Workplace::with(&stream),
            |_, nth, ended| {
                if ended.code != Some(0) {
                    assert!(ended.stderr.contains("(os error 116)"), "call {nth}: {ended:?}");
                    failed += 1;
                }
            },
        );
        assert!(failed > 5, "{failed}");
    }
}

#[test]
fn names_that_a_file_system_does_not_have_are_refused_with_a_hint() {
    const EINVAL: i32 = 22;
    let [stream, _] = streams();
    let args = ["extract", "stream", "-q", "-o", "out"];
    let mut refused = 0;
    at_every_call(
        &args,
        Fault::Errno(EINVAL),
        || Workplace::with(&stream),
        |place, nth, ended| {
            if ended.stderr.starts_with("error: out/0000:00:02.0: Invalid argument") {
                assert!(ended.stderr.contains("hint: FAT, exFAT"), "call {nth}: {ended:?}");
                assert_eq!(entries_of(place.path()), ["stream"], "call {nth}");
                refused += 1;
            }
        },
    );
    assert!(refused > 0);
    let Some(disk) = Disk::new(64 << 20, &["mkfs.vfat", "-F", "32"]) else { return };
    let out = disk.join("out");
    let args = ["extract", "stream", "-q", "-o", out.to_str().unwrap()];
    for more in [&[][..], &["--read-once"]] {
        let output = Workplace::with(&stream).ramlift(&[&args, more].concat()).expect_code(1);
        assert!(output.stderr.contains("hint: FAT, exFAT"), "{output:?}");
        assert_eq!(entries_of(disk.path()), [""; 0]);
    }
    let args = [&args[..], &["--block", "main.ram"]].concat();
    Workplace::with(&stream).ramlift(&args).expect_code(0);
}

#[test]
fn images_on_a_server_or_in_user_space_are_synced_and_whole() {
    // A file system in user space, with directories, locks and renames of its own.
    let place = Workplace::with(&streams()[0]);
    for name in ["below", "above"] {
        fs::create_dir(place.join(name)).unwrap();
    }
    let (below, above) = (place.join("below"), place.join("above"));
    let (below, above) = (below.to_str().unwrap(), above.to_str().unwrap());
    if !succeeds("bindfs", &[below, above])
        || fs::metadata(above).unwrap().dev() == place.path().metadata().unwrap().dev()
    {
        eprintln!("SKIPPED: no bindfs here");
        return;
    }
    let run = || -> Vec<Output> {
        let ways: [&[&str]; 4] =
            [&[], &["--force"], &["--force", "--read-once"], &["--format", "elf", "--map", "main.ram@0"]];
        let extract = |(nth, way): (usize, &&[&str])| {
            let out = format!("{above}/{}", if nth < 3 { "out" } else { "core" });
            let extracted = place.ramlift(&[&["extract", "-q", "stream", "-o", &out], *way].concat());
            let manifest = if nth < 3 { out } else { format!("{out}.manifest.json") };
            [extracted, place.ramlift(&["verify", &manifest])]
        };
        ways.iter().enumerate().flat_map(extract).collect()
    };
    let outputs = run();
    let names = entries_of(above);
    Command::new("umount").arg(above).status().unwrap();
    for output in outputs {
        assert_eq!(output.code, 0, "{output:?}");
    }
    assert_eq!(names, ["core", "core.manifest.json", "out"]);
}

#[test]
fn a_channel_or_a_shared_file_that_cannot_be_read_is_an_error() {
    let pages: Vec<u8> = (0..64).flat_map(|page| noise(500 + page, 4096)).collect();
    let offsets: Vec<u64> = (0..64).map(|page| page << 12).collect();
    let captured = channel(
        0,
        &[Packet::data("main.ram", &offsets, &pages), Packet::sync(), Packet::sync(), Packet::sync()],
    );
    let flushed = || Records::new().word(MULTIFD_FLUSH, &[]);
    let start = [block_list(64 << 12, &[Block::new("main.ram", 64 << 12)]), flushed().end()].concat();
    let multifd =
        Synth::machine().start(RAM_ID, "ram", 4, &start).ram_part(flushed()).ram_end(flushed()).finish();
    let blocks = [Block::new("main.ram", 64 << 12).mr_addr(0)];
    let ignored = Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, Records::new()).finish();
    for (stream, file, option) in
        [(multifd, &captured, "--channel="), (ignored, &pages, "--shared-file=main.ram=")]
    {
        let Some(mut disk) = Disk::new(16 << 20, &["mkfs.ext4", "-q", "-F", "-O", "^has_journal"]) else {
            return;
        };
        let path = disk.join("file");
        fs::write(&path, file).unwrap();
        let place = Workplace::with(&stream);
        let option = format!("{option}{}", path.to_str().unwrap());
        for hash in [&[][..], &["--hash", "sha256"]] {
            let args = [&["extract", "-q", "stream", "-o", "out", "--force", option.as_str()], hash].concat();
            ramlift_in(&place, &args).expect_code(0);
        }
        fs::remove_dir_all(place.join("out")).unwrap();
        disk.fail_at(file);
        for hash in [&[][..], &["--hash", "sha256"], &["--hash", "blake3"]] {
            let args = [&["extract", "-q", "stream", "-o", "out", option.as_str()], hash].concat();
            let output = ramlift_in(&place, &args).expect_code(1);
            assert!(output.stderr.starts_with("error: "), "{args:?}: {output:?}");
            assert!(output.stderr.contains(path.to_str().unwrap()), "{args:?}: {output:?}");
            assert!(output.stderr.contains("failed"), "{args:?}: {output:?}");
            assert_eq!(entries_of(place.path()), ["stream"], "{args:?}");
        }
    }
}
