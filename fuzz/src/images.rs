//! Images in memory, which cost what is in them and not what they claim.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, OnceLock};

use ramlift::{
    BlockId, BlockOffset, ImageSink, ImageStore, PageTaker, Progress, Ram, Result, Stretch, scatter,
    scatter_stretch,
};

/// Bytes that are kept together.
const CELL: u64 = 1024;

/// What a cell holds; one of zeros is not there.
#[derive(Clone, PartialEq, Eq)]
enum Cell {
    Fill(u8),
    Data(Box<[u8]>),
}

type Cells = BTreeMap<(usize, u64), Cell>;

/// Images of all blocks.
#[derive(Default)]
pub struct Images {
    /// How long each block is; nothing may be written behind.
    lens: Vec<u64>,
    cells: Mutex<Cells>,
}

impl Images {
    /// Images of the blocks of `ram`, still empty.
    pub fn of(ram: &Ram<'_>) -> Self {
        Self { lens: ram.blocks().map(|(_, block, _)| block.used_length).collect(), cells: Mutex::default() }
    }

    /// Images of blocks of these lengths.
    pub fn with_lens(lens: Vec<u64>) -> Self {
        Self { lens, cells: Mutex::default() }
    }

    /// What the scatter makes of `ram`, with so many threads.
    pub fn scattered(ram: &Ram<'_>, threads: usize) -> Result<Self> {
        let images = Self::of(ram);
        let ids: Vec<BlockId> = ram.blocks().map(|(id, ..)| id).collect();
        pool(threads).install(|| scatter(ram, &ids, &images, &Progress::new()))?;
        Ok(images)
    }

    /// Puts `data` at `offset`; what of it is behind the block's end is left
    /// out.
    pub fn put(&self, block: usize, offset: u64, data: &[u8]) {
        let room = self.lens[block].saturating_sub(offset).min(data.len() as u64);
        self.write(BlockId(block), BlockOffset(offset), &data[..room as usize]).unwrap();
    }

    /// `len` bytes at `offset`.
    pub fn bytes(&self, block: usize, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(BlockId(block), BlockOffset(offset), &mut bytes).unwrap();
        bytes
    }
}

impl PartialEq for Images {
    fn eq(&self, other: &Self) -> bool {
        *self.cells.lock().unwrap() == *other.cells.lock().unwrap()
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((block, cell), content) in &*self.cells.lock().unwrap() {
            let (first, what) = match content {
                Cell::Fill(byte) => (*byte, "fill"),
                Cell::Data(bytes) => (bytes[0], "data"),
            };
            write!(f, "{block}:{:#x} {what} {first:#x}, ", cell * CELL)?;
        }
        Ok(())
    }
}

impl ImageSink for Images {
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()> {
        let end = offset.0.checked_add(data.len() as u64).expect("images end before 2^64");
        assert!(
            end <= self.lens[block.0],
            "{block:?} of {:#x} bytes is written up to {end:#x}",
            self.lens[block.0]
        );
        let mut cells = self.cells.lock().unwrap();
        let mut at = offset.0;
        let mut rest = data;
        while !rest.is_empty() {
            let skipped = (at % CELL) as usize;
            let (head, tail) = rest.split_at(rest.len().min(CELL as usize - skipped));
            put(&mut cells, (block.0, at / CELL), skipped, head);
            at += head.len() as u64;
            rest = tail;
        }
        Ok(())
    }
}

fn put(cells: &mut Cells, key: (usize, u64), skipped: usize, new: &[u8]) {
    let mut content = match (cells.get(&key), new.len() as u64 == CELL) {
        (_, true) | (None, _) => vec![0; CELL as usize].into(),
        (Some(Cell::Fill(byte)), _) => vec![*byte; CELL as usize].into(),
        (Some(Cell::Data(bytes)), _) => bytes.clone(),
    };
    content[skipped..skipped + new.len()].copy_from_slice(new);
    let first = content[0];
    // All bytes are the same if each is as the one before; so compared, it costs
    // no loop here, whose rounds would be counted.
    match (content[1..] == content[..content.len() - 1], first) {
        (true, 0) => _ = cells.remove(&key),
        (true, byte) => _ = cells.insert(key, Cell::Fill(byte)),
        (false, _) => _ = cells.insert(key, Cell::Data(content)),
    }
}

impl ImageStore for Images {
    fn read(&self, block: BlockId, offset: BlockOffset, data: &mut [u8]) -> Result<()> {
        let cells = self.cells.lock().unwrap();
        let mut at = offset.0;
        let mut rest = data;
        while !rest.is_empty() {
            let skipped = (at % CELL) as usize;
            let (head, tail) = rest.split_at_mut(rest.len().min(CELL as usize - skipped));
            match cells.get(&(block.0, at / CELL)) {
                None => head.fill(0),
                Some(Cell::Fill(byte)) => head.fill(*byte),
                Some(Cell::Data(bytes)) => head.copy_from_slice(&bytes[skipped..skipped + head.len()]),
            }
            at += head.len() as u64;
            rest = tail;
        }
        Ok(())
    }
}

/// Takes the pages of a stream that goes by into images.
#[derive(Default)]
pub struct Passing {
    pub images: Images,
    ids: Vec<BlockId>,
}

impl PageTaker for Passing {
    fn begin(&mut self, ram: &Ram<'_>) -> Result<()> {
        self.ids = ram.blocks().map(|(id, ..)| id).collect();
        self.images = Images::of(ram);
        Ok(())
    }

    fn take(&mut self, stretch: &Stretch<'_, '_>) -> Result<()> {
        pool(2).install(|| scatter_stretch(stretch, &self.ids, &self.images))
    }
}

/// A pool of so many threads, made once.
fn pool(threads: usize) -> &'static rayon::ThreadPool {
    static POOLS: [OnceLock<rayon::ThreadPool>; 2] = [const { OnceLock::new() }; 2];
    let build = || rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    POOLS[threads - 1].get_or_init(build)
}
