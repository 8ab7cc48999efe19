//! Writes streams.
//!
//! The constants of the wire stand here a second time, and nothing of the
//! crate under test is imported: a wrong change to its definitions must not go
//! unseen.

/// First byte of each record.
pub const EOF: u8 = 0x00;
pub const START: u8 = 0x01;
pub const PART: u8 = 0x02;
pub const END: u8 = 0x03;
pub const FULL: u8 = 0x04;
pub const SUBSECTION: u8 = 0x05;
pub const VMDESCRIPTION: u8 = 0x06;
pub const CONFIGURATION: u8 = 0x07;
pub const COMMAND: u8 = 0x08;
pub const FOOTER: u8 = 0x7e;

/// Flags of a RAM record's first word.
pub const ZERO: u64 = 0x002;
pub const MEM_SIZE: u64 = 0x004;
pub const PAGE: u64 = 0x008;
pub const EOS: u64 = 0x010;
pub const CONTINUE: u64 = 0x020;
pub const XBZRLE: u64 = 0x040;
pub const HOOK: u64 = 0x080;
pub const COMPRESS_PAGE: u64 = 0x100;
pub const MULTIFD_FLUSH: u64 = 0x200;

/// The section id that the `ram` section has here.
pub const RAM_ID: u32 = 2;

/// A name behind its length in one byte.
pub fn str8(name: impl AsRef<[u8]>) -> Vec<u8> {
    let name = name.as_ref();
    let len = u8::try_from(name.len()).expect("names have at most 255 bytes");
    [&[len], name].concat()
}

/// A subsection of a device or of the configuration.
pub fn subsection(name: &str, version: u32, fields: &[u8]) -> Vec<u8> {
    [&[SUBSECTION], str8(name).as_slice(), &version.to_be_bytes(), fields].concat()
}

/// Bytes that look like nothing, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(words.next().expect("the words do not end"));
    }
    bytes.truncate(len);
    bytes
}

/// An entry of the block list.
#[derive(Clone, Debug)]
pub struct Block {
    pub idstr: Vec<u8>,
    pub used_length: u64,
    pub page_size: Option<u64>,
    pub mr_addr: Option<u64>,
}

impl Block {
    pub fn new(idstr: impl AsRef<[u8]>, used_length: u64) -> Self {
        Self { idstr: idstr.as_ref().to_vec(), used_length, page_size: None, mr_addr: None }
    }

    /// With the size of its host pages: a block of huge pages, postcopy being
    /// allowed.
    pub fn page_size(self, page_size: u64) -> Self {
        Self { page_size: Some(page_size), ..self }
    }

    /// With its region's offset: capability `x-ignore-shared`.
    pub fn mr_addr(self, mr_addr: u64) -> Self {
        Self { mr_addr: Some(mr_addr), ..self }
    }
}

/// What the START section of `ram` holds before its first record.
pub fn block_list(total: u64, blocks: &[Block]) -> Vec<u8> {
    let mut bytes = (total | MEM_SIZE).to_be_bytes().to_vec();
    for block in blocks {
        bytes.extend(str8(&block.idstr));
        let numbers = [Some(block.used_length), block.page_size, block.mr_addr];
        bytes.extend(numbers.iter().flatten().flat_map(|number| number.to_be_bytes()));
    }
    bytes
}

fn encode_xbzrle(pairs: &[(usize, &[u8])]) -> Vec<u8> {
    let leb128 = |len: usize| match len {
        ..0x80 => vec![len as u8],
        _ => vec![len as u8 | 0x80, (len >> 7) as u8],
    };
    let pairs: Vec<u8> = pairs
        .iter()
        .flat_map(|(keep, new)| [leb128(*keep), leb128(new.len()), new.to_vec()].concat())
        .collect();
    [&[1], (pairs.len() as u16).to_be_bytes().as_slice(), &pairs].concat()
}

fn deflate(page: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, page).unwrap();
    let stream = encoder.finish().unwrap();
    [(stream.len() as u32).to_be_bytes().as_slice(), &stream].concat()
}

/// The page records of one `ram` body.
#[derive(Clone, Default, Debug)]
pub struct Records(Vec<u8>);

impl Records {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any word, with what follows it.
    pub fn word(mut self, word: u64, behind: &[u8]) -> Self {
        self.0.extend(word.to_be_bytes());
        self.0.extend(behind);
        self
    }

    /// A page of data, its block named.
    pub fn data(self, block: impl AsRef<[u8]>, offset: u64, page: &[u8]) -> Self {
        self.word(offset | PAGE, &[&str8(block), page].concat())
    }

    /// A fill page, its block named.
    pub fn fill(self, block: impl AsRef<[u8]>, offset: u64, byte: u8) -> Self {
        self.word(offset | ZERO, &[str8(block).as_slice(), &[byte]].concat())
    }

    /// A page of data of the same block as the page before.
    pub fn next_data(self, offset: u64, page: &[u8]) -> Self {
        self.word(offset | PAGE | CONTINUE, page)
    }

    /// A fill page of the same block as the page before.
    pub fn next_fill(self, offset: u64, byte: u8) -> Self {
        self.word(offset | ZERO | CONTINUE, &[byte])
    }

    /// What changed in a page: bytes to keep and bytes to put behind them, in
    /// pairs.
    pub fn xbzrle(self, block: impl AsRef<[u8]>, offset: u64, pairs: &[(usize, &[u8])]) -> Self {
        self.word(offset | XBZRLE, &[str8(block), encode_xbzrle(pairs)].concat())
    }

    /// The same, of the same block as the page before.
    pub fn next_xbzrle(self, offset: u64, pairs: &[(usize, &[u8])]) -> Self {
        self.word(offset | XBZRLE | CONTINUE, &encode_xbzrle(pairs))
    }

    /// A compressed page, its block named.
    pub fn compressed(self, block: impl AsRef<[u8]>, offset: u64, page: &[u8]) -> Self {
        self.word(offset | COMPRESS_PAGE, &[str8(block), deflate(page)].concat())
    }

    /// A compressed page of the same block as the page before.
    pub fn next_compressed(self, offset: u64, page: &[u8]) -> Self {
        self.word(offset | COMPRESS_PAGE | CONTINUE, &deflate(page))
    }

    /// The records and the word that ends a body.
    pub fn end(self) -> Vec<u8> {
        self.word(EOS, &[]).0
    }
}

/// A stream being written.
#[derive(Clone, Debug)]
pub struct Synth {
    bytes: Vec<u8>,
    has_footers: bool,
    page_size: Option<u64>,
    devices: Vec<String>,
}

impl Synth {
    /// The header: a stream with footers, of pages of 4 KiB.
    pub fn new() -> Self {
        let bytes = b"QEVM\0\0\0\x03".to_vec();
        Self { bytes, has_footers: true, page_size: Some(4096), devices: Vec::new() }
    }

    /// The header, and a configuration that says no more than a machine type.
    pub fn machine() -> Self {
        Self::new().configuration("synth-1.0")
    }

    /// Sections end without footers, as in machine types up to 2.3.
    pub fn without_footers(self) -> Self {
        Self { has_footers: false, ..self }
    }

    /// What the description gives as the target page size.
    pub fn described_page_size(self, page_size: Option<u64>) -> Self {
        Self { page_size, ..self }
    }

    /// Where the next byte goes.
    pub fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Any bytes.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// The configuration record.
    pub fn configuration(self, machine: impl AsRef<[u8]>) -> Self {
        let machine = machine.as_ref();
        let len = u32::try_from(machine.len()).expect("machine types are short");
        self.raw([CONFIGURATION]).raw(len.to_be_bytes()).raw(machine)
    }

    /// A subsection; behind the configuration, one of its.
    pub fn subsection(self, name: &str, payload: &[u8]) -> Self {
        self.raw(subsection(name, 1, payload))
    }

    /// `configuration/target-page-bits`.
    pub fn target_page_bits(self, bits: u32) -> Self {
        self.subsection("configuration/target-page-bits", &bits.to_be_bytes())
    }

    /// `configuration/capabilities`.
    pub fn capabilities(self, names: &[&str]) -> Self {
        let count = u32::try_from(names.len()).expect("capabilities are few");
        let names: Vec<u8> = names.iter().flat_map(str8).collect();
        self.subsection("configuration/capabilities", &[count.to_be_bytes().as_slice(), &names].concat())
    }

    /// `configuration/uuid`.
    pub fn uuid(self, uuid: [u8; 16]) -> Self {
        self.subsection("configuration/uuid", &uuid)
    }

    /// A command.
    pub fn command(self, command: u16, data: &[u8]) -> Self {
        let len = u16::try_from(data.len()).expect("commands are short");
        self.raw([COMMAND]).raw(command.to_be_bytes()).raw(len.to_be_bytes()).raw(data)
    }

    /// The header of a START or FULL section.
    pub fn head(self, kind: u8, id: u32, name: impl AsRef<[u8]>, instance: u32, version: u32) -> Self {
        self.raw([kind])
            .raw(id.to_be_bytes())
            .raw(str8(name))
            .raw(instance.to_be_bytes())
            .raw(version.to_be_bytes())
    }

    /// The footer of a section, if the stream has any.
    pub fn footer(self, id: u32) -> Self {
        if self.has_footers { self.raw([FOOTER]).raw(id.to_be_bytes()) } else { self }
    }

    /// A START section of any handler.
    pub fn start(self, id: u32, name: &str, version: u32, body: &[u8]) -> Self {
        self.head(START, id, name, 0, version).raw(body).footer(id)
    }

    /// A PART section of any handler.
    pub fn part(self, id: u32, body: &[u8]) -> Self {
        self.raw([PART]).raw(id.to_be_bytes()).raw(body).footer(id)
    }

    /// An END section of any handler.
    pub fn end(self, id: u32, body: &[u8]) -> Self {
        self.raw([END]).raw(id.to_be_bytes()).raw(body).footer(id)
    }

    /// The START section of `ram`.
    pub fn ram_start(self, blocks: &[Block]) -> Self {
        let total = blocks.iter().map(|block| block.used_length).sum();
        let body = [block_list(total, blocks), Records::new().end()].concat();
        self.start(RAM_ID, "ram", 4, &body)
    }

    /// A PART section of `ram`.
    pub fn ram_part(self, records: Records) -> Self {
        self.part(RAM_ID, &records.end())
    }

    /// The END section of `ram`.
    pub fn ram_end(self, records: Records) -> Self {
        self.end(RAM_ID, &records.end())
    }

    /// All of RAM in one go.
    pub fn ram(self, blocks: &[Block], records: Records) -> Self {
        self.ram_start(blocks).ram_part(records).ram_end(Records::new())
    }

    /// A FULL section that nothing describes.
    pub fn undescribed(self, id: u32, name: impl AsRef<[u8]>, instance: u32, body: &[u8]) -> Self {
        self.head(FULL, id, name, instance, 1).raw(body).footer(id)
    }

    /// A FULL section, with the keys that describe it.
    pub fn device_as(mut self, id: u32, name: &str, instance: u32, body: &[u8], keys: &str) -> Self {
        self.devices.push(format!(r#"{{"name": "{name}", "instance_id": {instance}, {keys}}}"#));
        self.undescribed(id, name, instance, body)
    }

    /// A FULL section of version 1, with the list of fields that describes it.
    pub fn device(self, id: u32, name: &str, body: &[u8], fields: &str) -> Self {
        let keys = format!(r#""vmsd_name": "{name}", "version": 1, "fields": [{fields}]"#);
        self.device_as(id, name, 0, body, &keys)
    }

    /// The description of the devices so far.
    pub fn description_text(&self) -> String {
        let page_size = self.page_size.map_or(String::new(), |size| format!(r#""page_size": {size}, "#));
        format!(r#"{{{page_size}"devices": [{}]}}"#, self.devices.join(", "))
    }

    /// Ends the records, and describes the devices with `text`.
    pub fn describe(self, text: impl AsRef<[u8]>) -> Vec<u8> {
        let text = text.as_ref();
        let len = u32::try_from(text.len()).expect("descriptions are short");
        self.raw([EOF, VMDESCRIPTION]).raw(len.to_be_bytes()).raw(text).bytes
    }

    /// Ends the records, and describes the devices.
    pub fn finish(self) -> Vec<u8> {
        let text = self.description_text();
        self.describe(text)
    }

    /// Ends the records; there is no description.
    pub fn finish_undescribed(self) -> Vec<u8> {
        self.raw([EOF]).bytes
    }

    /// The bytes so far.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A stream with a bit of everything: two blocks, two passes, a device.
pub fn small_stream() -> Synth {
    let page = noise(1, 4096);
    Synth::new()
        .configuration("synth-1.0")
        .capabilities(&["x-colo"])
        .uuid([7; 16])
        .command(1, &[])
        .ram_start(&[Block::new("main.ram", 4 * 4096), Block::new("0000:00:02.0/vga.vram", 2 * 4096)])
        .ram_part(Records::new().data("main.ram", 0, &page).next_fill(0x1000, 0).next_fill(0x2000, 0x5a))
        .ram_part(Records::new().next_fill(0x3000, 0).fill("0000:00:02.0/vga.vram", 0, 0))
        .command(11, &[])
        .ram_end(Records::new().next_fill(0x1000, 0).fill("main.ram", 0x2000, 0))
        .device(3, "timer", &[0, 0, 0, 5, 1], TIMER_FIELDS)
        .device(
            4,
            "0000:00:02.0/vga",
            b"\x01\x02\x03\x04",
            r#"{"name": "regs", "array_len": 4, "type": "uint8", "size": 1}"#,
        )
}

const TIMER_FIELDS: &str =
    r#"{"name": "ticks", "type": "uint32", "size": 4}, {"name": "on", "type": "bool", "size": 1}"#;
