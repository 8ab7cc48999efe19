//! The internal snapshots of a qcow2 image, as `info` lists them.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use ramlift::wrapper::qcow2::{MAGIC, Snapshot};
use serde::Serialize;

use crate::args::LayerArgs;
use crate::exit::{Exit, Failure};
use crate::{inputs, layers, terminal};

/// A snapshot, as the image's table has it.
#[derive(Serialize)]
pub(crate) struct SnapshotReport {
    id: String,
    tag: String,
    /// Seconds since 1970.
    date: u32,
    /// Nanoseconds that the guest had run.
    vm_clock: u64,
    /// Bytes; 0 for a snapshot of the disk alone.
    vm_state_size: u64,
}

impl SnapshotReport {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        Self {
            id: snapshot.id.to_string(),
            tag: snapshot.name.to_string(),
            date: snapshot.date_sec,
            vm_clock: snapshot.vm_clock_nsec,
            vm_state_size: snapshot.vm_state_size,
        }
    }
}

impl fmt::Display for SnapshotReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, tag, date, vm_clock, vm_state_size } = self;
        let clock = Duration::from_nanos(*vm_clock).as_secs_f64();
        write!(f, "{id} \"{tag}\", {}, VM clock {clock:.3} s, VM state {vm_state_size} bytes", utc(*date))
    }
}

/// A date as ISO 8601 writes it.
fn utc(seconds: u32) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // The proleptic Gregorian calendar, years beginning in March: a leap day
    // is a year's last.
    let day = days + 719_468;
    let era = day / 146_097;
    let day = day % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + next;
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

/// The snapshots of the image at `path`, if it is one and none of several is
/// chosen.
pub(crate) fn several(path: &Path, args: &LayerArgs) -> Result<Option<Vec<SnapshotReport>>, Failure> {
    if args.snapshot.is_some() || args.offset != 0 || !path.is_file() {
        return Ok(None);
    }
    let mut file = inputs::open(path).map_err(Failure::file(path))?;
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Ok(None);
    }
    let image = layers::open_image(path, file)?;
    let with_state = image.snapshots().iter().filter(|snapshot| snapshot.vm_state_size > 0).count();
    let reports = || image.snapshots().iter().map(SnapshotReport::of).collect();
    Ok((with_state != 1).then(reports))
}

/// The output of `info --json` for an image of which no snapshot is chosen.
#[derive(Serialize)]
struct Report<'r> {
    ramlift: &'static str,
    path: String,
    snapshots: &'r [SnapshotReport],
}

/// Lists the snapshots of an image.
pub(crate) fn print(snapshots: &[SnapshotReport], path: &Path, json: bool) -> Result<Exit, Failure> {
    let path = path.to_string_lossy().into_owned();
    if json {
        terminal::print_json(&Report { ramlift: env!("CARGO_PKG_VERSION"), path, snapshots })?;
        return Ok(Exit::Complete);
    }
    let mut out = terminal::stdout();
    let mut list = || {
        writeln!(out, "{}", ramlift::Idstr::from(path.as_str()))?;
        let count = snapshots.len();
        writeln!(
            out,
            "  layers        qcow2, {count} {}",
            if count == 1 { "snapshot" } else { "snapshots" }
        )?;
        snapshots.iter().try_for_each(|snapshot| writeln!(out, "  snapshot      {snapshot}"))?;
        let has_state = snapshots.iter().any(|snapshot| snapshot.vm_state_size > 0);
        let what = if has_state { "--snapshot ID|TAG chooses one" } else { "no snapshot has VM state" };
        writeln!(out, "\n{what}")
    };
    list().map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(Exit::Complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(utc(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(utc(u32::MAX), "2106-02-07T06:28:15Z");
    }
}
