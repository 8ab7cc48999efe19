//! Reading a stream as it goes by, and what comes of it.

use std::fs;
use std::io::Cursor;

use ramlift::{
    BlockFiles, BlockId, ErrorKind, ImageStore, Incoming, Kept, PageTaker, Progress, Ram, Result, Stream,
    Stretch, image_len, scatter, scatter_stretch,
};
use tempfile::TempDir;

/// Writes the images of all blocks as their pages come.
pub struct Images {
    pub dir: TempDir,
    files: Option<BlockFiles>,
    ids: Vec<BlockId>,
    pub stretches: usize,
}

impl Images {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), files: None, ids: Vec::new(), stretches: 0 }
    }

    pub fn image(&self, id: BlockId) -> Vec<u8> {
        fs::read(self.dir.path().join(id.0.to_string())).unwrap()
    }
}

impl PageTaker for Images {
    fn begin(&mut self, ram: &Ram<'_>) -> Result<()> {
        self.ids = ram.blocks().map(|(id, ..)| id).collect();
        let files = self.ids.iter().map(|id| (*id, self.dir.path().join(id.0.to_string())));
        self.files = Some(BlockFiles::create(ram, files)?);
        Ok(())
    }

    fn take(&mut self, stretch: &Stretch<'_, '_>) -> Result<()> {
        self.stretches += 1;
        let files = self.files.as_ref().expect("the blocks are known");
        scatter_stretch(stretch, &self.ids, files)?;
        // Behind its end an image is zero.
        let mut behind = [1; 8];
        files.read(BlockId(0), ramlift::BlockOffset(u64::MAX >> 2), &mut behind)?;
        assert_eq!(behind, [0; 8]);
        Ok(())
    }
}

/// The images of a stream that can be gone back to, as the threads write them.
#[track_caller]
pub fn images_of(ram: &Ram<'_>) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<BlockId> = ram.blocks().map(|(id, ..)| id).collect();
    let path = |id: &BlockId| dir.path().join(id.0.to_string());
    let files = BlockFiles::create(ram, ids.iter().map(|id| (*id, path(id)))).unwrap();
    let progress = Progress::new();
    scatter(ram, &ids, &files, &progress).unwrap();
    assert_eq!(progress.done(), image_len(ram, &ids), "progress ends at its total");
    ids.iter().map(|id| fs::read(path(id)).unwrap()).collect()
}

/// Reads `bytes` as they go by, `chunk_len` at a time, and checks that all is
/// as if they could be gone back to. Gives how many stretches there were.
#[track_caller]
pub fn check_going_by(bytes: &[u8], chunk_len: usize) -> usize {
    let whole = Stream::parse(bytes).unwrap();
    let (kept, mut images) = (Kept::new(), Images::new());
    let incoming = Incoming::new("pipe", Cursor::new(bytes.to_vec())).with_chunk_len(chunk_len);
    let passed = Stream::read_once(incoming, &kept, &Progress::new(), &mut images).unwrap();
    check_same(&whole, &passed);
    let (Some(ram), Some(passed_ram)) = (whole.ram(), passed.ram()) else {
        assert_eq!(whole.ram().is_none(), passed.ram().is_none());
        return 0;
    };
    for ((id, block, _), expected) in ram.blocks().zip(images_of(ram)) {
        assert!(images.image(id) == expected, "the image of {} by chunks of {chunk_len}", block.idstr);
        check_same_pages(ram, passed_ram, id);
    }
    assert_eq!(ram.pass_count(), passed_ram.pass_count());
    assert_eq!(ram.pages_per_pass(), passed_ram.pages_per_pass());
    images.stretches
}

#[track_caller]
fn check_same_pages(ram: &Ram<'_>, passed: &Ram<'_>, id: BlockId) {
    let count = |ram: &Ram<'_>| {
        let pages = ram.pages(id).unwrap();
        let kinds = (pages.data_pages(), pages.fill_pages(), pages.xbzrle_pages());
        (kinds, pages.resent_pages(), ram.absent_pages(id))
    };
    assert_eq!(count(ram), count(passed), "pages of block {}", id.0);
    // What went by is not there, and is not said to be absent or zero.
    let first = (0..16).map(|page| ramlift::BlockOffset(page * ram.page_size().bytes()));
    for offset in first {
        match (ram.page(id, offset).unwrap(), passed.page(id, offset)) {
            (ramlift::Page::Data(_), Err(error)) => {
                assert!(matches!(error.kind(), ErrorKind::GoneBy { .. }), "{error}");
            }
            (page, passed) => assert_eq!(page, passed.unwrap()),
        }
    }
}

/// Checks that all but pages is the same.
#[track_caller]
fn check_same(whole: &Stream<'_>, passed: &Stream<'_>) {
    let section = |section: &ramlift::Section| {
        (section.offset, section.kind, section.handler.clone(), section.body, section.body_end)
    };
    let sections = |stream: &Stream<'_>| stream.sections().iter().map(section).collect::<Vec<_>>();
    assert_eq!(sections(whole), sections(passed));
    for section in whole.sections().iter().filter(|section| section.handler.idstr != *"ram") {
        assert!(whole.body(section) == passed.body(section), "the body of {}", section.handler);
    }
    assert_eq!(whole.commands(), passed.commands());
    for command in whole.commands() {
        assert_eq!(whole.command_data(command), passed.command_data(command));
    }
    let text = |stream: &Stream<'_>| stream.description().map(|found| (found.offset, found.text.to_vec()));
    assert_eq!(text(whole), text(passed));
    assert_eq!((whole.end(), whole.has_footers()), (passed.end(), passed.has_footers()));
    assert_eq!(whole.warnings(), passed.warnings());
    let decoded = |stream: &Stream<'_>| {
        let devices = stream.devices().map(|device| serde_json::to_string(&ramlift::DeviceJson::of(device)));
        devices.map(Result::unwrap).collect::<Vec<_>>()
    };
    assert!(decoded(whole) == decoded(passed), "devices are decoded alike");
}
