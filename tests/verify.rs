//! `extract --hash`, what manifests record, and `verify`.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use serde_json::{Value, json};
use support::cli::{Output, Workplace, files_in, ramlift_fed};
use support::fixtures::{unpack, unpack_channels, unpack_file};
use support::hex::sha256;
use support::synth::{Block, Records, Synth, noise, small_stream};

fn hash(function: &str, bytes: &[u8]) -> String {
    match function {
        "sha256" => sha256(bytes),
        _ => blake3::hash(bytes).to_hex().to_string(),
    }
}

/// Checks each file's size and hash against the file.
#[track_caller]
fn check_files(place: &Workplace, directory: &str, manifest: &Value) {
    let function = manifest["hash"].as_str().unwrap();
    let files = manifest["files"].as_array().unwrap();
    assert!(!files.is_empty());
    for file in files {
        let path = file["path"].as_str().unwrap();
        let bytes = fs::read(place.path().join(directory).join(path)).unwrap();
        assert_eq!(file["size"], bytes.len(), "{path}");
        assert_eq!(file["hash"], hash(function, &bytes), "{path}");
    }
}

#[test]
fn every_output_of_every_format_is_hashed_as_it_is() {
    let stream = unpack("pc-10.0-paused");
    let place = Workplace::with(&stream);
    for function in ["sha256", "blake3"] {
        place.ramlift(&["extract", "stream", "-o", "out", "--hash", function, "--force"]).expect_code(0);
        let manifest = place.json("out/manifest.json");
        let listed = manifest["files"].as_array().unwrap().iter();
        let mut listed: Vec<&str> = listed.map(|file| file["path"].as_str().unwrap()).collect();
        listed.push("manifest.json");
        listed.sort_unstable();
        assert_eq!(listed, files_in(place.join("out")));
        check_files(&place, "out", &manifest);
        assert_eq!(manifest["inputs"][0]["hash"], hash(function, &stream));
        for format in ["elf", "kdump", "lime", "avml", "raw"] {
            let args = ["extract", "stream", "--format", format, "-o", format, "--hash", function, "--force"];
            place.ramlift(&args).expect_code(0);
            let manifest = place.json(&format!("{format}.manifest.json"));
            assert_eq!(
                (&manifest["format"], &manifest["files"][0]["path"]),
                (&json!(format), &json!(format))
            );
            check_files(&place, ".", &manifest);
            place.ramlift(&["verify", &format!("{format}.manifest.json")]).expect_code(0);
        }
    }
}

#[test]
fn the_hash_of_the_input_is_that_of_the_file_whatever_is_in_it() {
    for file in ["libvirt-12.8-zstd.zst", "libvirt-12.8-raw.zst", "savevm-7.2.qcow2.zst", "pc-7.2-xbzrle.zst"]
    {
        let snapshot: &[&str] = if file.starts_with("savevm") { &["--snapshot", "first"] } else { &[] };
        let bytes = unpack_file(file);
        let place = Workplace::with(&bytes);
        for more in [&[][..], &["--read-once"], &["--threads", "1"]] {
            let args = ["extract", "stream", "-o", "out", "--force", "--hash", "sha256"];
            place.ramlift(&[&args, more, snapshot].concat()).expect_code(0);
            let input = place.json("out/manifest.json")["inputs"][0].clone();
            assert_eq!(input["hash"], hash("sha256", &bytes), "{file} {more:?}");
            assert_eq!((&input["size"], &input["path"]), (&json!(bytes.len()), &json!("stream")));
            place.ramlift(&["verify", "out"]).expect_code(0);
        }
    }
}

#[test]
fn what_stands_before_and_behind_the_stream_is_hashed_too() {
    let bytes = [noise(3, 5000), small_stream().finish(), vec![0; 7000]].concat();
    let place = Workplace::with(&bytes);
    let args = ["extract", "stream", "-o", "out", "--offset", "5000", "--force", "--hash", "blake3"];
    for more in [&[][..], &["--read-once"]] {
        place.ramlift(&[&args, more].concat()).expect_code(0);
        assert_eq!(place.json("out/manifest.json")["inputs"][0]["hash"], hash("blake3", &bytes), "{more:?}");
    }
    let mut piped = args;
    piped[1] = "-";
    ramlift_fed(place.path(), &piped, &bytes).expect_code(0);
    let input = &place.json("out/manifest.json")["inputs"][0];
    assert_eq!((&input["hash"], &input["size"]), (&json!(hash("blake3", &bytes)), &json!(bytes.len())));
}

#[test]
fn what_comes_by_a_pipe_is_hashed_before_it_is_unpacked() {
    for format in ["blocks", "elf"] {
        for file in ["libvirt-12.8-gzip.zst", "pc-10.0-paused.zst"] {
            let bytes = unpack_file(file);
            let place = Workplace::with(&bytes);
            let args = ["extract", "-", "-o", "out", "--format", format, "--hash", "sha256"];
            ramlift_fed(place.path(), &args, &bytes).expect_code(0);
            let manifest = if format == "elf" { "out.manifest.json" } else { "out/manifest.json" };
            assert_eq!(place.json(manifest)["inputs"][0]["hash"], hash("sha256", &bytes), "{file}");
            // Where it is, nobody knows; a copy will do.
            let output = place.ramlift(&["verify", manifest]).expect_code(3);
            assert!(output.text().contains("--stream PATH"), "{output:?}");
            place.ramlift(&["verify", manifest, "--stream", "stream"]).expect_code(0);
        }
    }
}

#[test]
fn channels_and_shared_files_are_inputs_with_hashes() {
    let place = Workplace::with(&unpack("pc-10.0-multifd-zstd-live"));
    let channels = unpack_channels("pc-10.0-multifd-zstd-live");
    let mut args = vec!["extract", "stream", "-o", "out", "--hash", "sha256"];
    for (name, bytes) in ["channel-0", "channel-1"].iter().zip(&channels) {
        fs::write(place.join(name), bytes).unwrap();
        args.extend(["--channel", name]);
    }
    place.ramlift(&args).expect_code(0);
    let manifest = place.json("out/manifest.json");
    for (nth, bytes) in channels.iter().enumerate() {
        let input = &manifest["inputs"][nth + 1];
        assert_eq!((&input["role"], &input["hash"]), (&json!("channel"), &json!(hash("sha256", bytes))));
    }
    place.ramlift(&["verify", "out"]).expect_code(0);
    flip(&place.join("channel-1"), 4000);
    let output = place.ramlift(&["verify", "out"]).expect_code(1);
    assert!(output.text().contains("channel-1: hash"), "{output:?}");
}

#[test]
fn a_shared_file_is_an_input_too() {
    let blocks = [Block::new("shared", 0x2000).mr_addr(0x10_0000), Block::new("main.ram", 0x1000).mr_addr(0)];
    let records = Records::new().data("main.ram", 0, &noise(1, 4096));
    let stream = Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, records).finish();
    let place = Workplace::with(&stream);
    fs::write(place.join("memory"), noise(2, 0x2000)).unwrap();
    let args = ["extract", "stream", "-o", "out", "--hash", "sha256", "--shared-file", "shared=memory"];
    place.ramlift(&args).expect_code(0);
    let input = &place.json("out/manifest.json")["inputs"][1];
    let expected = (&json!("shared-file"), &json!(hash("sha256", &noise(2, 0x2000))));
    assert_eq!((&input["role"], &input["hash"]), expected);
    place.ramlift(&["verify", "out"]).expect_code(0);
}

/// All files but the manifest, and the manifest without what is of one run.
fn reproducible(place: &Workplace, directory: &str) -> (Vec<(String, Vec<u8>)>, Value) {
    let mut manifest = place.json(&format!("{directory}/manifest.json"));
    let run = manifest.as_object_mut().unwrap().remove("run").unwrap();
    assert!(run["threads"].is_u64() && run["host"]["byte_order"].is_string(), "{run}");
    let names = files_in(place.join(directory)).into_iter().filter(|name| name != "manifest.json");
    (names.map(|name| (name.clone(), place.read(&format!("{directory}/{name}")))).collect(), manifest)
}

#[test]
fn runs_give_identical_bytes_on_any_number_of_threads() {
    for name in ["pc-7.2-xbzrle", "pc-10.0-mapped-ram-live", "pc-7.2-block"] {
        let place = Workplace::with(&unpack(name));
        let mut first = None;
        for threads in ["1", "2", "3", "8"] {
            for more in [&[][..], &["--read-once"]] {
                let args = ["extract", "stream", "-o", "out", "--block-devices", "--hash", "blake3"];
                place.ramlift(&[&args, more, &["--threads", threads]].concat()).expect_code(0);
                let met = reproducible(&place, "out");
                fs::remove_dir_all(place.join("out")).unwrap();
                assert!(*first.get_or_insert_with(|| met.clone()) == met, "{name} {threads} {more:?}");
            }
        }
    }
}

#[test]
fn the_manifest_says_how_to_run_it_again() {
    let place = Workplace::with(&small_stream().finish());
    let args = ["extract", "stream", "-o", "out", "--threads", "2", "--quiet"];
    place.ramlift(&args).expect_code(0);
    let run = place.json("out/manifest.json")["run"].clone();
    assert_eq!(run["arguments"], json!(args));
    assert_eq!(Path::new(run["directory"].as_str().unwrap()), place.path().canonicalize().unwrap());
    let (started, finished) = (run["started"].as_str().unwrap(), run["finished"].as_str().unwrap());
    assert!(started <= finished && started.ends_with('Z') && started.as_bytes()[10] == b'T', "{run}");
    let input = &place.json("out/manifest.json")["inputs"][0];
    assert!(input["modified"].as_str().unwrap().ends_with('Z'), "{input}");
    assert!(input["inode"].is_u64() && input["device"].is_u64(), "{input}");
    assert_eq!(input["hash"], Value::Null);
}

#[test]
fn the_hash_of_the_manifest_itself_is_printed() {
    let place = Workplace::with(&small_stream().finish());
    let output = place.ramlift(&["extract", "stream", "-o", "out", "--hash", "sha256"]).expect_code(0);
    let seal = format!("out/manifest.json: sha256 {}", hash("sha256", &place.read("out/manifest.json")));
    assert!(output.text().lines().any(|line| line == seal), "{output:?}");
}

#[test]
fn a_single_file_and_its_manifest_come_together() {
    let place = Workplace::with(&unpack("pc-10.0-paused"));
    fs::write(place.join("core.manifest.json"), "mine").unwrap();
    let args = ["extract", "stream", "--format", "elf", "-o", "core"];
    place.ramlift(&args).expect_code(1);
    assert_eq!(files_in(place.path()), ["core.manifest.json", "stream"]);
    assert_eq!(place.read("core.manifest.json"), b"mine");
    place.ramlift(&[&args[..], &["--force"]].concat()).expect_code(0);
    place.ramlift(&["verify", "core.manifest.json"]).expect_code(0);
    let output = place.ramlift(&["verify", "core"]).expect_code(1);
    assert!(output.stderr.contains("core.manifest.json") || output.stderr.contains("FILE.manifest.json"));
}

#[test]
fn extractions_of_all_kinds_of_streams_verify() {
    let files = [
        "pc-7.2-compress.zst",
        "pc-10.0-mapped-ram-live.zst",
        "pc-7.2-block.zst",
        "pc-10.0-ignore-shared.zst",
        "libvirt-12.8-xz.zst",
        "arm-mps2-7.2.zst",
        "pc-10.0-no-vmdesc.zst",
    ];
    for file in files {
        let place = Workplace::with(&unpack_file(file));
        for (out, more) in [("plain", &[][..]), ("hashed", &["--hash", "blake3", "--block-devices"])] {
            let extracted = place.ramlift(&[&["extract", "stream", "-o", out], more].concat());
            assert!([0, 3].contains(&extracted.code), "{file}: {extracted:?}");
            let verified = place.ramlift(&["verify", out]);
            assert_eq!((verified.code, verified.stderr.as_str()), (0, ""), "{file} {out}: {verified:?}");
        }
    }
}

#[test]
fn a_salvage_verifies() {
    let mut bytes = unpack("pc-10.0-paused");
    bytes.truncate(bytes.len() / 2);
    let place = Workplace::with(&bytes);
    place.ramlift(&["extract", "stream", "-o", "out", "--salvage"]).expect_code(3);
    place.ramlift(&["verify", "out"]).expect_code(0);
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
}

/// A stream with data, zeros and a device, and an extraction of it, which
/// `tamper` changes. Gives what `verify` then says.
fn tampered(more: &[&str], tamper: impl FnOnce(&Workplace)) -> Output {
    let blocks = [Block::new("main.ram", 0x40_0000), Block::new("0000:00:02.0/vga.vram", 0x2000)];
    let records = Records::new()
        .data("main.ram", 0, &noise(1, 4096))
        .data("main.ram", 0x20_0000, &noise(2, 4096))
        .fill("0000:00:02.0/vga.vram", 0, 0);
    let on = r#"{"name": "on", "type": "bool", "size": 1}"#;
    let stream = Synth::machine().ram(&blocks, records).device(3, "timer", &[1], on).finish();
    let place = Workplace::with(&stream);
    place.ramlift(&[&["extract", "stream", "-o", "out", "-q"], more].concat()).expect_code(0);
    place.ramlift(&["verify", "out"]).expect_code(0);
    tamper(&place);
    place.ramlift(&["verify", "out"])
}

/// Checks that a change is found by the stream alone, by hash and stream, and,
/// if it is one of files that are hashed, by hash alone.
#[track_caller]
fn check_found(expected: &str, tamper: impl Fn(&Workplace)) {
    for more in [&[][..], &["--hash", "sha256"], &["--hash", "blake3"]] {
        let output = tampered(more, &tamper).expect_code(1);
        let is_named = |line: &str| line.starts_with("differs: ") && line.contains(expected);
        assert!(output.text().lines().any(is_named), "{more:?}: expected {expected:?}: {output:?}");
    }
}

#[test]
fn one_flipped_bit_is_found_wherever_it_is() {
    check_found("main.ram: differs at 0x20000f: 0x", |place| flip(&place.join("out/main.ram"), 0x20_000f));
    // In a hole, and in a page of zeros.
    check_found("main.ram: differs at 0x300007: 0x10, expected 0x00; in 1 bytes", |place| {
        flip(&place.join("out/main.ram"), 0x30_0007);
    });
    check_found("vga.vram: differs at 0x1fff", |place| {
        flip(&place.join("out/0000:00:02.0/vga.vram"), 0x1fff)
    });
    check_found("state.json: differs at", |place| flip(&place.join("out/state.json"), 40));
    check_found("desc.json: differs at", |place| flip(&place.join("out/desc.json"), 9));
}

#[test]
fn files_of_another_length_are_found() {
    let resize = |len: u64| {
        move |place: &Workplace| {
            fs::File::options().write(true).open(place.join("out/main.ram")).unwrap().set_len(len).unwrap();
        }
    };
    check_found("main.ram: 4194303 bytes, expected 4194304", resize(0x3f_ffff));
    check_found("main.ram: ends at 0x1000", resize(0x1000));
    check_found("main.ram: goes on behind 0x400000, where it should end, for 1 bytes", resize(0x40_0001));
    check_found("state.json: ends at 0x14", |place| {
        fs::File::options().write(true).open(place.join("out/state.json")).unwrap().set_len(20).unwrap();
    });
}

#[test]
fn missing_and_unexpected_files_are_named() {
    check_found("main.ram: is missing", |place| fs::remove_file(place.join("out/main.ram")).unwrap());
    check_found("state.json: is missing", |place| fs::remove_file(place.join("out/state.json")).unwrap());
    check_found("deep/er: is not in the manifest", |place| {
        fs::create_dir(place.join("out/deep")).unwrap();
        fs::write(place.join("out/deep/er"), "").unwrap();
    });
    check_found("link: is not in the manifest", |place| symlink("main.ram", place.join("out/link")).unwrap());
}

#[test]
fn another_stream_and_a_changed_one_are_found() {
    let other = |place: &Workplace| {
        fs::write(place.join("stream"), small_stream().finish()).unwrap();
    };
    check_found("stream:", other);
    check_found("main.ram:", other);
    // A byte of a page.
    check_found("main.ram: differs at 0x", |place| flip(&place.join("stream"), 2000));
    check_found("cannot be made again", |place| flip(&place.join("stream"), 1));
    check_found("bytes, and what was read had", |place| {
        let file = fs::File::options().append(true).open(place.join("stream")).unwrap();
        std::io::Write::write_all(&mut &file, &[0]).unwrap();
    });
}

#[test]
fn an_image_of_another_stream_is_found_though_its_hash_is_in_the_manifest() {
    let output = tampered(&["--hash", "sha256"], |place| {
        let image = [noise(7, 4096), vec![0; 0x3f_f000]].concat();
        fs::write(place.join("out/main.ram"), &image).unwrap();
        edit(&place.join("out/manifest.json"), |manifest| {
            let files = manifest["files"].as_array_mut().unwrap();
            let file = files.iter_mut().find(|file| file["path"] == "main.ram").unwrap();
            file["hash"] = json!(hash("sha256", &image));
        });
    });
    assert!(output.expect_code(1).text().contains("main.ram: differs at 0x0"));
}

#[test]
fn an_edited_manifest_is_found() {
    let edited = |key: &'static str, value: Value| {
        move |place: &Workplace| {
            let path = place.join("out/manifest.json");
            edit(&path, |manifest| *manifest.pointer_mut(key).unwrap() = value.clone());
        }
    };
    check_found("/machine is \"pc\", expected \"synth-1.0\"", edited("/machine", json!("pc")));
    check_found("/blocks/0/used_length is 5", edited("/blocks/0/used_length", json!(5)));
    check_found("/warnings is", edited("/warnings", json!([])));
    check_found("/source/layers is", edited("/source/layers", json!(["zstd", "QEVM"])));
    check_found("main.ram: 4194304 bytes, expected 7", edited("/files/2/size", json!(7)));
    check_found("inputs are not those", edited("/inputs", json!([])));
    check_found("/note is of no extraction", |place| {
        edit(&place.join("out/manifest.json"), |manifest| manifest["note"] = json!("mine"));
    });
    // What is not told of any more is not expected.
    check_found("main.ram: is not in the manifest", |place| {
        edit(&place.join("out/manifest.json"), |manifest| {
            manifest["files"].as_array_mut().unwrap().retain(|file| file["path"] != "main.ram");
        });
    });
    check_found("is in the manifest twice", |place| {
        edit(&place.join("out/manifest.json"), |manifest| {
            let files = manifest["files"].as_array_mut().unwrap();
            files.push(files[0].clone());
        });
    });
    for key in ["/files/2/hash", "/inputs/0/hash"] {
        let output = tampered(&["--hash", "sha256"], edited(key, json!("00"))).expect_code(1);
        assert!(output.text().contains("00"), "{output:?}");
    }
    let output = tampered(&["--hash", "sha256"], edited("/files/2/hash", Value::Null)).expect_code(1);
    assert!(output.text().contains("main.ram: the manifest has no hash of it"), "{output:?}");
}

#[test]
fn a_hostile_manifest_leads_nowhere() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("secret"), "secret").unwrap();
    let add = |path: String| {
        move |place: &Workplace| {
            edit(&place.join("out/manifest.json"), |manifest| {
                let file = json!({"path": path, "size": 6, "hash": hash("sha256", b"secret")});
                manifest["files"].as_array_mut().unwrap().push(file);
            });
        }
    };
    let inside = "is no plain path inside the directory";
    check_found(inside, add(secret.path().join("secret").to_str().unwrap().to_owned()));
    check_found(inside, |place| {
        fs::write(place.join("secret"), "secret").unwrap();
        add("../secret".to_owned())(place);
    });
    check_found(inside, add(String::new()));
    check_found("link: is a symlink", |place| {
        symlink(secret.path().join("secret"), place.join("out/link")).unwrap();
        add("link".to_owned())(place);
    });
    check_found("deep/secret: ", |place| {
        symlink(secret.path(), place.join("out/deep")).unwrap();
        add("deep/secret".to_owned())(place);
    });
    // A control character is not printed.
    let output = tampered(&[], add("\u{1b}[2J".to_owned())).expect_code(1);
    assert!(!output.stdout.contains(&0x1b), "{output:?}");
    for text in ["", "{}", "[1]", "{\"files\": 7}", "not JSON"] {
        let output = tampered(&[], |place| fs::write(place.join("out/manifest.json"), text).unwrap());
        let output = output.expect_code(1);
        assert!(output.stderr.contains("manifest.json: is no manifest"), "{output:?}");
    }
}

/// Makes a named pipe, which nobody writes to.
fn make_pipe(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
}

#[test]
fn pipes_are_not_waited_for() {
    check_found("main.ram: is no regular file", |place| {
        fs::remove_file(place.join("out/main.ram")).unwrap();
        make_pipe(&place.join("out/main.ram"));
    });
    let output = tampered(&[], |place| {
        fs::remove_file(place.join("stream")).unwrap();
        make_pipe(&place.join("stream"));
    });
    assert!(output.expect_code(3).text().contains("stream: is no file"));
}

#[test]
fn inputs_that_the_manifest_does_not_tell_of_are_not_opened() {
    // Looked at as an input it would be no file; opened, it would be waited for.
    let output = tampered(&[], |place| {
        make_pipe(&place.join("pipe"));
        edit(&place.join("out/manifest.json"), |manifest| {
            manifest["run"]["arguments"] = json!(["extract", "pipe", "-o", "out"]);
            manifest["inputs"] = json!([]);
        });
    });
    assert!(output.expect_code(1).text().contains("inputs are not those"));
}

#[test]
fn a_file_that_the_stream_does_not_make_is_found_though_the_manifest_tells_of_it() {
    check_found("note: is nothing that the stream makes", |place| {
        fs::write(place.join("out/note"), "mine").unwrap();
        edit(&place.join("out/manifest.json"), |manifest| {
            let function = manifest["hash"].as_str().map(|function| hash(function, b"mine"));
            let file = json!({"path": "note", "size": 4, "hash": function});
            manifest["files"].as_array_mut().unwrap().push(file);
        });
    });
    // One file is told of by its name alone.
    check_found("main.ram/: is nothing", |place| {
        edit(&place.join("out/manifest.json"), |manifest| {
            let files = manifest["files"].as_array_mut().unwrap();
            let mut file = files.iter().find(|file| file["path"] == "main.ram").unwrap().clone();
            file["path"] = json!("main.ram/");
            files.push(file);
        });
    });
}

#[test]
fn what_is_told_of_the_input_is_checked() {
    let edited = |key: &'static str, value: Value| {
        move |place: &Workplace| {
            let path = place.join("out/manifest.json");
            edit(&path, |manifest| *manifest.pointer_mut(key).unwrap() = value.clone());
        }
    };
    check_found("inputs are not those", edited("/inputs/0/path", json!("another")));
    check_found("does not say how long", edited("/inputs/0/size", Value::Null));
    check_found("/source/path is", edited("/source/path", json!("another")));
    check_found("/source/size is 5", edited("/source/size", json!(5)));
    for (key, expected) in
        [("/hash", "hashes are not those"), ("/inputs/0/hash", "stream: the manifest has no hash of it")]
    {
        let output = tampered(&["--hash", "sha256"], edited(key, Value::Null)).expect_code(1);
        assert!(output.text().contains(expected), "{output:?}");
    }
}

#[test]
fn a_manifest_of_a_terabyte_is_no_manifest() {
    let output = tampered(&[], |place| {
        fs::File::create(place.join("out/manifest.json")).unwrap().set_len(1 << 40).unwrap();
    });
    let output = output.expect_code(1);
    assert!(output.stderr.contains("manifest.json: is no manifest"), "{output:?}");
}

#[test]
fn without_the_stream_hashes_are_checked_and_the_rest_is_said() {
    let gone = |place: &Workplace| fs::rename(place.join("stream"), place.join("moved")).unwrap();
    let output = tampered(&["--hash", "sha256"], gone).expect_code(3);
    assert_eq!(output.text().lines().count(), 1, "{output:?}");
    assert!(output.text().starts_with("not checked: against the stream: "), "{output:?}");
    let output = tampered(&[], gone).expect_code(3);
    assert!(output.text().contains("the manifest has no hashes"), "{output:?}");
    let output = tampered(&["--hash", "sha256"], |place| {
        gone(place);
        flip(&place.join("out/main.ram"), 3);
    });
    assert!(output.expect_code(1).text().contains("main.ram: hash "));
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    gone(&place);
    place.ramlift(&["verify", "out", "--stream", "moved"]).expect_code(0);
}

#[test]
fn the_options_that_a_directory_was_made_with_are_those_it_is_checked_with() {
    let place = Workplace::with(&unpack("pc-7.2-block"));
    for (out, more) in
        [("one", &["--block", "pc.rom"][..]), ("two", &["--block-devices"]), ("three", &["--read-once"])]
    {
        place.ramlift(&[&["extract", "stream", "-o", out], more].concat()).expect_code(0);
        place.ramlift(&["verify", out]).expect_code(0);
    }
    let image = files_in(place.join("two")).into_iter().find(|name| name.starts_with("block/")).unwrap();
    let path = place.join(&format!("two/{image}"));
    flip(&path, 3 << 10);
    assert!(place.ramlift(&["verify", "two"]).expect_code(1).text().contains(&image));
    // A flipped byte of a packed file is found by the stream alone.
    let place = Workplace::with(&unpack("pc-10.0-paused"));
    for format in ["elf", "kdump", "lime", "avml", "raw"] {
        place.ramlift(&["extract", "stream", "--format", format, "-o", format]).expect_code(0);
        flip(&place.join(format), 5000);
        let output = place.ramlift(&["verify", &format!("{format}.manifest.json")]).expect_code(1);
        assert!(output.text().contains(&format!("{format}: differs at 0x1388: ")), "{output:?}");
    }
}
