//! What a manifest says, to the byte: paths and arguments that are no text,
//! keys that are given twice or that nobody knows, versions, and what is told
//! of it all.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use support::cli::{Output, Workplace, ramlift_in, ramlift_within};
use support::synth::{Block, Records, Synth, noise, small_stream};

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// A directory whose name is no UTF-8, with a stream and a shared file whose
/// names are none either. `None` where the file system has no such names.
fn place_without_text() -> Option<(Workplace, OsString)> {
    let blocks = [Block::new("shared", 0x2000).mr_addr(0x10_0000), Block::new("main.ram", 0x1000).mr_addr(0)];
    let records = Records::new().data("main.ram", 0, &noise(1, 4096));
    let stream = Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, records).finish();
    let place = Workplace::with(b"");
    let directory = place.path().join(os(b"d\xfe\\x"));
    if let Err(error) = fs::create_dir(&directory) {
        eprintln!("SKIPPED: no names here that are not UTF-8: {error}");
        return None;
    }
    fs::write(directory.join(os(b"caf\xe9")), stream).unwrap();
    fs::write(directory.join(os(b"mem\xff")), noise(2, 0x2000)).unwrap();
    Some((place, directory.into()))
}

#[test]
fn paths_that_are_no_text_are_found_again() {
    let Some((place, directory)) = place_without_text() else { return };
    let maps = [os(b"--map"), os(b"main.ram@0"), os(b"--map"), os(b"shared@0x100000")];
    let ways: [&[&OsStr]; 4] = [
        &[os(b"-o"), os(b"out\xfd")],
        &[os(b"-o"), os(b"hashed\xfd"), os(b"--hash"), os(b"sha256")],
        &[os(b"-o"), os(b"core\xfc"), os(b"--format"), os(b"elf")],
        &[os(b"-o"), os(b"packed\xfc"), os(b"--format"), os(b"avml")],
    ];
    for more in ways {
        let is_single = more.contains(&os(b"--format"));
        let maps = if is_single { &maps[..] } else { &[] };
        let args = [os(b"extract"), os(b"caf\xe9"), os(b"--shared-file"), os(b"shared=mem\xff")];
        ramlift_in(&directory, &[&args, more, maps].concat()).expect_code(0);
        let output = Path::new(&directory).join(more[1]);
        let manifest = match is_single {
            true => output.with_file_name(os(&[more[1].as_bytes(), b".manifest.json"].concat())),
            false => output.join("manifest.json"),
        };
        let told: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        let (run, inputs) = (&told["run"], &told["inputs"]);
        assert_eq!(
            (&inputs[0]["path"], &inputs[0]["path_escaped"]),
            (&json!("caf\u{fffd}"), &json!("caf\\xe9"))
        );
        assert_eq!(inputs[1]["path_escaped"], "mem\\xff");
        assert_eq!(run["arguments"][1], "caf\u{fffd}");
        let escaped: Vec<Value> = run["arguments_escaped"].as_array().unwrap()[..4].to_vec();
        assert_eq!(escaped, [Value::Null, json!("caf\\xe9"), Value::Null, json!("shared=mem\\xff")]);
        assert!(run["directory_escaped"].as_str().unwrap().ends_with("/d\\xfe\\x5cx"), "{run}");
        assert_eq!(told["files"][0].get("path_escaped").is_some(), is_single, "{told}");
        let verified = ramlift_in(place.path(), &[os(b"verify"), manifest.as_os_str()]);
        assert_eq!((verified.code, verified.stderr.as_str()), (0, ""), "{more:?}: {verified:?}");
    }
    // By its bytes, and by no other name.
    fs::rename(Path::new(&directory).join(os(b"caf\xe9")), Path::new(&directory).join("caf\u{fffd}"))
        .unwrap();
    let verified = ramlift_in(&directory, &[os(b"verify"), os(b"out\xfd")]).expect_code(3);
    assert!(verified.text().contains("not checked: against the stream"), "{verified:?}");
}

#[test]
fn text_stands_as_it_is() {
    let place = Workplace::with(b"");
    let names = ["caf\u{e9}", "back\\xff", "line\nbreak", "\u{fffd}"];
    for name in names {
        fs::write(place.join(name), small_stream().finish()).unwrap();
        place.ramlift(&["extract", name, "-o", "out", "--force"]).expect_code(0);
        let manifest = place.json("out/manifest.json");
        assert_eq!(manifest["inputs"][0]["path"], name);
        assert_eq!(manifest["run"]["arguments"][1], name);
        assert!(!String::from_utf8(place.read("out/manifest.json")).unwrap().contains("_escaped"));
        place.ramlift(&["verify", "out"]).expect_code(0);
    }
}

/// An extraction, and what `verify` says of it when `change` has been at its
/// manifest's text.
fn changed(change: impl FnOnce(&str) -> String) -> Output {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out", "--hash", "sha256"]).expect_code(0);
    let path = place.join("out/manifest.json");
    let text = change(&fs::read_to_string(&path).unwrap());
    fs::write(path, text).unwrap();
    place.ramlift(&["verify", "out"])
}

/// The same with a manifest as JSON.
fn edited(edit: impl FnOnce(&mut Value)) -> Output {
    changed(|text| {
        let mut manifest: Value = serde_json::from_str(text).unwrap();
        edit(&mut manifest);
        manifest.to_string()
    })
}

/// Puts `what` behind the first `behind` in `text`.
fn put(text: &str, behind: &str, what: &str) -> String {
    assert!(text.contains(behind), "{behind} in {text}");
    text.replacen(behind, &format!("{behind}{what}"), 1)
}

#[test]
fn a_key_that_is_given_twice_is_refused_by_its_place() {
    let cases = [
        ("{", r#""hash": null, "#, "/hash is given twice"),
        ("{", r#""machine": "pc", "#, "/machine is given twice"),
        ("\"source\": {", r#""path": "another", "#, "/source/path is given twice"),
        ("\"blocks\": [\n    {", r#""idstr": "pc.ram", "#, "/blocks/0/idstr is given twice"),
        ("\"inputs\": [\n    {", r#""hash": "00", "#, "/inputs/0/hash is given twice"),
        ("\"files\": [\n    {", r#""path": "x", "#, "/files/0/path is given twice"),
        ("\"run\": {", r#""arguments": [], "#, "/run/arguments is given twice"),
        // The same key in other letters.
        ("\"run\": {", r#""\u0061rguments": [], "#, "/run/arguments is given twice"),
        // One that is not known does not matter more.
        ("{", r#""a": {"b": [0, {"c": 1, "c": 1}]}, "#, "/a/b/1/c is given twice"),
    ];
    for (behind, what, expected) in cases {
        let output = changed(|text| put(text, behind, what)).expect_code(1);
        assert!(output.stderr.contains("manifest.json: is no manifest"), "{what}: {output:?}");
        assert!(output.stderr.contains(expected) && output.stderr.contains("line "), "{what}: {output:?}");
    }
}

#[test]
fn a_key_that_nobody_knows_is_never_passed_over() {
    let cases: [(&str, &str); 5] = [
        ("/inputs/0", "/inputs/0/note"),
        ("/files/0", "/files/0/note"),
        ("/run", "/run/note"),
        ("/run/host", "/run/host/note"),
        ("", "/note"),
    ];
    for (at, expected) in cases {
        let add = |manifest: &mut Value| manifest.pointer_mut(at).unwrap()["note"] = json!("mine");
        let output = edited(add).expect_code(1);
        assert!(output.text().contains(&format!("differs: manifest.json: {expected} is of no extraction")));
        // Of another version it may be right, and is not checked.
        let output = edited(|manifest| {
            add(manifest);
            manifest["ramlift"] = json!("9.9.9");
        });
        let output = output.expect_code(3);
        assert!(output.text().contains(&format!("not checked: manifest.json: {expected} is unknown")));
    }
}

#[test]
fn a_manifest_of_another_kind_is_refused_by_its_version() {
    let output = edited(|manifest| {
        manifest["manifest_version"] = json!(2);
        manifest["ramlift"] = json!("9.9.9");
        // Whatever else is new in it.
        manifest["files"] = json!({"tree": []});
    });
    let output = output.expect_code(1);
    assert!(output.stderr.contains("manifest_version 2"), "{output:?}");
    assert!(
        output.stderr.contains("ramlift 9.9.9 wrote it") && output.stderr.contains("hint: "),
        "{output:?}"
    );
    let output = edited(|manifest| drop(manifest.as_object_mut().unwrap().remove("manifest_version")));
    assert!(output.expect_code(1).stderr.contains("manifest_version"));
}

#[test]
fn escaped_text_that_is_not_that_of_its_key_is_refused() {
    let escape = |key: &'static str, value: Value| {
        edited(move |manifest| *manifest.pointer_mut(key).unwrap() = value).expect_code(1)
    };
    let with = |path: &str, escaped: &str| {
        let file = json!({"role": "stream", "path": path, "path_escaped": escaped, "size": 1, "modified": null,
            "device": null, "inode": null, "hash": null});
        escape("/inputs/0", file)
    };
    for (path, escaped) in
        [("stream", "other"), ("stream", "stream"), ("a\u{fffd}", "b\\xff"), ("\u{fffd}", "\\xf")]
    {
        let output = with(path, escaped);
        assert!(output.stderr.contains("is not what"), "{path} {escaped}: {output:?}");
    }
    let output = edited(|manifest| manifest["run"]["arguments_escaped"] = json!([null])).expect_code(1);
    assert!(output.stderr.contains("arguments_escaped has 1 elements"), "{output:?}");
}

#[test]
fn text_of_any_length_is_told_in_short() {
    let long = "x".repeat(100_000);
    type Edit<'e> = &'e dyn Fn(&mut Value);
    let edits: [Edit<'_>; 9] = [
        &|manifest| manifest["files"][0]["path"] = json!(long),
        &|manifest| manifest["files"][0]["hash"] = json!(long),
        &|manifest| manifest["inputs"][0]["hash"] = json!(long),
        &|manifest| manifest["inputs"][0]["role"] = json!(long),
        &|manifest| manifest["machine"] = json!(long),
        &|manifest| manifest[&long] = json!(1),
        &|manifest| manifest["run"][&long] = json!(1),
        &|manifest| manifest["run"]["arguments"][1] = json!(long),
        &|manifest| manifest["ramlift"] = json!(long),
    ];
    for (nth, edit) in edits.into_iter().enumerate() {
        let output = edited(edit);
        assert!([1, 3].contains(&output.code), "{nth}: {output:?}");
        let told = output.stdout.len() + output.stderr.len();
        assert!(told > 0 && told < 4000, "{nth}: {told} bytes");
    }
    // Both as input and as argument, so that it is looked for.
    let output = edited(|manifest| {
        for key in ["/inputs/0/path", "/run/arguments/1", "/source/path"] {
            *manifest.pointer_mut(key).unwrap() = json!(long);
        }
    });
    assert!(output.expect_code(3).stdout.len() < 1000);
}

#[test]
fn an_empty_manifest_is_told_to_be_one() {
    // What is left where the power failed before it was on the disk.
    let output = changed(|_| String::new()).expect_code(1);
    assert!(output.stderr.contains("manifest.json: is no manifest"), "{output:?}");
    assert!(output.stderr.contains("it is empty\nhint: ") && output.stderr.contains("--sync"), "{output:?}");
}

#[test]
fn directories_that_nothing_was_written_into_are_named() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    for empty in ["mine", "deep/down"] {
        fs::create_dir_all(place.join("out").join(empty)).unwrap();
    }
    let output = place.ramlift(&["verify", "out"]).expect_code(1);
    let lines: Vec<&str> = output.text().lines().collect();
    assert_eq!(
        lines,
        ["differs: deep/down: is not in the manifest", "differs: mine: is not in the manifest"]
    );
}

#[test]
fn a_hash_that_nobody_can_check_is_a_difference() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    let manifest = place.json("out/manifest.json");
    for at in ["/files/0", "/inputs/0"] {
        let mut edited = manifest.clone();
        edited.pointer_mut(at).unwrap()["hash"] = json!("00".repeat(32));
        fs::write(place.join("out/manifest.json"), edited.to_string()).unwrap();
        let output = place.ramlift(&["verify", "out"]).expect_code(1);
        assert!(output.text().contains("has a hash of it, and says that there are none"), "{output:?}");
    }
}

#[test]
fn the_length_of_a_stream_that_is_elsewhere_is_checked_where_it_is_told_of_the_source_too() {
    let place = Workplace::with(&small_stream().finish());
    for (input, script) in [("stream", ""), ("-", "< stream"), ("-", "--hash sha256 < stream")] {
        let script = format!("rm -rf out; exec \"$0\" extract -q {input} -o out {script}");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).arg(support::cli::binary()).current_dir(place.path());
        assert!(command.status().unwrap().success(), "{script}");
        place.ramlift(&["verify", "out", "--stream", "stream"]).expect_code(0);
        let mut manifest = place.json("out/manifest.json");
        manifest["source"]["size"] = json!(1);
        fs::write(place.join("out/manifest.json"), manifest.to_string()).unwrap();
        let output = place.ramlift(&["verify", "out", "--stream", "stream"]).expect_code(1);
        assert!(output.text().contains("/source/size is 1, expected"), "{output:?}");
    }
}

#[test]
fn bytes_behind_compressed_data_are_told_of_alike_in_passing_and_unpacked() {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&small_stream().finish()).unwrap();
    let place = Workplace::with(&[&packed.finish().unwrap()[..], b"of somebody"].concat());
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    place.ramlift(&["extract", "-q", "stream", "-o", "salvaged", "--salvage"]).expect_code(0);
    for output in ["out", "salvaged"] {
        let verified = place.ramlift(&["verify", output]);
        assert_eq!(verified.code, 0, "{output}: {verified:?}");
    }
    let [passing, unpacked] =
        ["out", "salvaged"].map(|output| place.json(&format!("{output}/manifest.json")));
    assert_eq!(passing["warnings"], unpacked["warnings"]);
    let warning = passing["warnings"][0].as_str().unwrap();
    assert!(warning.contains("behind the end of the stream: at 0x"), "{warning}");
}

#[test]
fn what_a_manifest_says_takes_no_more_memory_than_its_length_allows() {
    // Each of these took 160 bytes for one of its own: 8 GB for 50 MB.
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let path = place.join("out/manifest.json");
    let honest = fs::read_to_string(&path).unwrap();
    for element in [r#"{"":0}"#, r#"{"a":{}}"#, "[[]]"] {
        for key in ["warnings", "files", "beyond"] {
            let many = vec![element; (14 << 20) / (element.len() + 1)].join(",");
            let at = honest.find(r#""warnings": []"#).unwrap();
            let (before, behind) = honest.split_at(at);
            let behind =
                if key == "warnings" { &behind[r#""warnings": []"#.len()..] } else { &format!(",{behind}") };
            let behind =
                if key == "files" { behind.replace("\"files\"", "\"others\"") } else { behind.to_owned() };
            fs::write(&path, format!("{before}\"{key}\": [{many}]{behind}")).unwrap();
            let output = ramlift_within(640 << 10, place.path(), &["verify", "out"]).expect_code(1);
            assert!(
                output.stderr.contains("more than one of its length can honestly say"),
                "{}",
                output.stderr
            );
        }
    }
}

#[test]
fn a_manifest_of_many_gigabytes_is_not_read() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let mut file = fs::OpenOptions::new().write(true).open(place.join("out/manifest.json")).unwrap();
    file.write_all(b"\"").unwrap();
    file.set_len((512 << 20) + 1).unwrap();
    let output = ramlift_within(400 << 10, place.path(), &["verify", "out"]).expect_code(1);
    assert!(output.stderr.contains("and none has more than 536870912"), "{}", output.stderr);
}
