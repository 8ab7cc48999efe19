//! `todclock`: the TOD clock of an s390 guest.
//!
//! ```text
//! u8 1   u8 high   be64 low
//! u8 0                          QEMU could not read it
//! ```
//!
//! Source followed: QEMU `hw/s390x/tod.c` (`s390_tod_save`).

use crate::body::piece::Tod;
use crate::body::{Content, Step, unknown_flags};
use crate::cursor::Cursor;
use crate::error::Result;

pub(super) const VERSION: u32 = 1;

const S390_TOD_CLOCK_VALUE_MISSING: u8 = 0;
const S390_TOD_CLOCK_VALUE_PRESENT: u8 = 1;

pub(super) fn step<'a>(cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    let at = cursor.offset();
    let tod = match cursor.u8()? {
        S390_TOD_CLOCK_VALUE_MISSING => None,
        S390_TOD_CLOCK_VALUE_PRESENT => Some(Tod { high: cursor.u8()?, low: cursor.be64()? }),
        met => return Err(unknown_flags(at, "flag of the TOD clock", met.into(), "0 or 1")),
    };
    Ok(Step::Last(Content::TodClock(tod)))
}
