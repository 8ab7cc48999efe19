//! Pages that the destination of a postcopy was told to throw away.
//!
//! What the guest has written to by then is old in the stream, and will be sent
//! again: `POSTCOPY_RAM_DISCARD` says which pages these are, before the guest
//! goes on at the destination.
//!
//! ```text
//! u8 0  str8 idstr  u8 0  { be64 start  be64 length } …    bytes of the block
//! ```
//!
//! With `postcopy-preempt` some of them go through a connection of their own.
//! A stream without these looks whole: every page is there, but old.
//!
//! Source followed: QEMU `migration/savevm.c`
//! (`qemu_savevm_send_postcopy_ram_discard`).

use std::collections::BTreeMap;

use crate::cursor::Cursor;
use crate::error::Result;
use crate::ram::Ram;
use crate::section::Command;
use crate::units::{BlockId, BlockOffset, StreamOffset};
use crate::walked::{Walked, Warning};
use crate::wire::command;

/// Begin and end of what is thrown away of each block, in bytes.
type Discarded = BTreeMap<BlockId, Vec<(u64, u64)>>;

/// Warnings of pages that were not sent again.
pub(crate) fn warnings(walked: &Walked<'_>) -> Vec<Warning> {
    let is_discard = |command: &&Command| command.command == command::POSTCOPY_RAM_DISCARD;
    let commands: Vec<&Command> = walked.commands.iter().filter(is_discard).collect();
    // With mapped-ram there is no postcopy.
    let ram = walked.ram.as_ref().filter(|ram| !ram.is_mapped());
    // All commands are sent before the first page is sent again.
    let Some((ram, last)) = ram.zip(commands.last()) else { return Vec::new() };
    let warning = |offset, text| Warning { offset: Some(offset), text, is_loss: true };
    let (mut discarded, mut warnings) = (Discarded::new(), Vec::new());
    for command in &commands {
        let data = Cursor::new(walked.command_data(command), command.offset);
        if let Err(error) = read(data, ram, &mut discarded) {
            warnings.push(warning(
                command.offset,
                format!("which pages are old cannot be read: {}", error.kind()),
            ));
        }
    }
    for (id, ranges) in discarded {
        let (stale, block) = (stale_pages(ram, id, ranges, last.offset), ram.block(id));
        if let Some(block) = block.filter(|_| stale > 0) {
            let text = format!(
                "RAM block \"{}\": {stale} pages are older than the guest's: postcopy was to send them again, and did not in this stream",
                block.idstr
            );
            warnings.push(warning(last.offset, text));
        }
    }
    warnings
}

/// Reads the data of a command.
fn read(mut data: Cursor<'_>, ram: &Ram<'_>, discarded: &mut Discarded) -> Result<()> {
    data.u8()?;
    let id = ram.find(data.str8()?);
    data.u8()?;
    let ranges = id.map(|id| discarded.entry(id).or_default());
    let Some(ranges) = ranges else { return Ok(()) };
    while data.remaining() > 0 {
        let (start, len) = (data.be64()?, data.be64()?);
        ranges.push((start, start.saturating_add(len)));
    }
    Ok(())
}

/// How many pages of a block in any of `ranges` have their last record before
/// `place`.
fn stale_pages(ram: &Ram<'_>, id: BlockId, mut ranges: Vec<(u64, u64)>, place: StreamOffset) -> u64 {
    let Some(pages) = ram.pages(id) else { return 0 };
    let is_stale = |offset| pages.last_record(BlockOffset(offset)).is_some_and(|at| at < place);
    let page_len = ram.page_size().bytes();
    ranges.sort_unstable();
    let (mut stale, mut done) = (0, 0);
    for (start, end) in ranges {
        for run in pages.runs(BlockOffset(start.max(done)), BlockOffset(end)) {
            stale += (0..run.pages).filter(|nth| is_stale(run.offset.0 + nth * page_len)).count() as u64;
        }
        done = done.max(end);
    }
    stale
}
