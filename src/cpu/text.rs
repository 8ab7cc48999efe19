//! Lines of several registers, as many targets print them.

use std::fmt;

/// Writes what stands side by side, `count` to a line, a blank between two.
pub(super) fn write_rows(
    f: &mut fmt::Formatter<'_>,
    count: usize,
    cells: impl IntoIterator<Item = String>,
) -> fmt::Result {
    let cells: Vec<String> = cells.into_iter().collect();
    cells.chunks(count).try_for_each(|row| writeln!(f, "{}", row.join(" ")))
}
