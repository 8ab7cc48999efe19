//! The bytes of the wire under their QEMU names, and the limits of this
//! reader. No parsing.
//!
//! Sources followed: QEMU `migration/savevm.h`, `migration/ram.c`,
//! `migration/savevm.c`, `include/migration/qemu-file-types.h`.

/// The first four bytes of every stream: "QEVM".
pub(crate) const QEMU_VM_FILE_MAGIC: u32 = 0x5145_564d;
/// The only stream version that QEMU has written since 2009.
pub(crate) const QEMU_VM_FILE_VERSION: u32 = 3;

/// Record types: the first byte of each record.
pub(crate) mod record {
    /// Ends the records; a description may follow.
    pub(crate) const QEMU_VM_EOF: u8 = 0x00;
    /// First section of an iterative handler.
    pub(crate) const QEMU_VM_SECTION_START: u8 = 0x01;
    /// Further section of an iterative handler.
    pub(crate) const QEMU_VM_SECTION_PART: u8 = 0x02;
    /// Last section of an iterative handler.
    pub(crate) const QEMU_VM_SECTION_END: u8 = 0x03;
    /// A device, whole.
    pub(crate) const QEMU_VM_SECTION_FULL: u8 = 0x04;
    /// Inside a device or the configuration.
    pub(crate) const QEMU_VM_SUBSECTION: u8 = 0x05;
    /// The JSON description, after the end of the records.
    pub(crate) const QEMU_VM_VMDESCRIPTION: u8 = 0x06;
    /// The machine type; only at offset 8. Since QEMU 2.4.
    pub(crate) const QEMU_VM_CONFIGURATION: u8 = 0x07;
    /// A command with its length. Since QEMU 2.5.
    pub(crate) const QEMU_VM_COMMAND: u8 = 0x08;
    /// Follows each section of machine types newer than 2.3.
    pub(crate) const QEMU_VM_SECTION_FOOTER: u8 = 0x7e;
}

/// Commands: QEMU's `enum qemu_vm_cmd`, from `migration/savevm.c`.
pub(crate) mod command {
    /// Which pages are old, and will be sent again. Since QEMU 2.5.
    pub(crate) const POSTCOPY_RAM_DISCARD: u16 = 6;

    /// QEMU's name for a command, without the prefix.
    pub(crate) fn name(command: u16) -> Option<&'static str> {
        Some(match command {
            1 => "OPEN_RETURN_PATH",
            2 => "PING",
            3 => "POSTCOPY_ADVISE",
            4 => "POSTCOPY_LISTEN",
            5 => "POSTCOPY_RUN",
            POSTCOPY_RAM_DISCARD => "POSTCOPY_RAM_DISCARD",
            7 => "PACKAGED",
            8 => "ENABLE_COLO",
            9 => "POSTCOPY_RESUME",
            10 => "RECV_BITMAP",
            11 => "SWITCHOVER_START",
            _ => return None,
        })
    }
}

/// Flags in the low bits of a RAM record's first word: QEMU's
/// `RAM_SAVE_FLAG_*`, from `migration/ram.c`.
pub(crate) mod ram_flag {
    /// Obsolete; never in version 4.
    pub(crate) const FULL: u64 = 0x001;
    /// A page of one repeated byte.
    pub(crate) const ZERO: u64 = 0x002;
    /// The block list.
    pub(crate) const MEM_SIZE: u64 = 0x004;
    /// A page of data.
    pub(crate) const PAGE: u64 = 0x008;
    /// The end of the section's records.
    pub(crate) const EOS: u64 = 0x010;
    /// Same block as the page record before: no name follows.
    pub(crate) const CONTINUE: u64 = 0x020;
    /// A delta against the page's earlier content.
    pub(crate) const XBZRLE: u64 = 0x040;
    /// RDMA only.
    pub(crate) const HOOK: u64 = 0x080;
    /// A deflated page; QEMU 2.4 to 9.0.
    pub(crate) const COMPRESS_PAGE: u64 = 0x100;
    /// Pages so far are in the multifd channels; since QEMU 8.1.
    pub(crate) const MULTIFD_FLUSH: u64 = 0x200;
    /// Every flag ever assigned.
    pub(crate) const MASK: u64 = 0x3ff;
    /// The flags of a target whose pages are 256 bytes (avr before 10.2):
    /// higher bits belong to the address there.
    pub(crate) const MASK_256: u64 = 0x0ff;
}

/// The version of the `ram` section since 2009.
pub(crate) const RAM_VERSION: u32 = 4;

/// Limits on what a stream may claim. Nothing is allocated for a claim: these
/// only bound loops and recursion, and name nonsense early.
pub(crate) mod limit {
    /// Bytes of a machine type's name. QEMU's longest is 40 or so.
    pub(crate) const MACHINE_NAME_LEN: u64 = 4096;
    /// Names in `configuration/capabilities`. QEMU has fewer than 30.
    pub(crate) const CAPABILITIES: u64 = 256;
    /// RAM blocks. A guest with 256 DIMMs and as many devices has under 1000;
    /// each costs at least 10 bytes of input and about 200 of memory.
    pub(crate) const RAM_BLOCKS: usize = 65_536;
    /// Passes whose records are counted one by one. Real guests have up to
    /// some dozens; pages in no order make each record a pass.
    pub(crate) const PASSES: usize = 1024;
    /// Times the length of the input that a salvage looks for the ends of
    /// devices in vain: some memory scans of it all.
    pub(crate) const VAIN_SCANS: u64 = 32;
    /// Dirty bitmaps, or block devices, that the sections of one handler name.
    /// Each takes at least 6 bytes of input and about 200 of memory.
    pub(crate) const NAMED: usize = 65_536;
    /// Bytes of the description. 57 real ones had 1.4 kB to 102 kB; 4096
    /// vCPUs make about 40 MB. Parsed, it takes up to eight times its length.
    pub(crate) const VMDESC_LEN: u64 = 64 << 20;
    /// Bytes of a name in the description. QEMU's are C expressions of up to
    /// 60 or so; each element of an array repeats those of its fields in JSON.
    pub(crate) const DESC_NAME_LEN: usize = 256;
    /// Devices in the description. Each takes some 200 bytes, whatever it says.
    pub(crate) const DEVICES: usize = 1 << 18;
    /// Bytes of names that a device's JSON may have for each byte of its body,
    /// and beyond that. Names are repeated for each element of an array: real
    /// devices have up to 40 for a byte.
    pub(crate) const NAMES_PER_BYTE: u64 = 64;
    pub(crate) const NAMES_LEN: u64 = 16 << 10;
    /// Nested descriptions inside a device; the deepest seen is 5. Bounds the
    /// stack that decoding takes.
    pub(crate) const VMSD_DEPTH: usize = 32;
    /// Fields and array elements of one device. Real ones have some 10,000;
    /// each decoded one takes about 100 bytes.
    pub(crate) const ELEMENTS: u64 = 1 << 20;
    /// Elements of zero bytes that one device may have: they cost no input.
    pub(crate) const EMPTY_ELEMENTS: u64 = 1024;
    /// Ways to read one device's description that are tried.
    pub(crate) const DECODE_ATTEMPTS: usize = 128;
    /// Bytes besides RAM pages that are kept of a stream that goes by. Real
    /// ones have some 2 MB, or what a vfio device has: hundreds of megabytes.
    /// Each piece counts for 96 bytes more: five million sections reach it.
    pub(crate) const KEPT_LEN: u64 = 1 << 30;
    /// Of these, what may stand from the first device behind RAM on. Behind it
    /// nothing is kept: there are the remains of other streams.
    pub(crate) const REST_LEN: u64 = 512 << 20;
    /// How far the end of a device is looked for in such a stream, and beyond
    /// the devices that led there the description: 64 MiB of state, and what
    /// stands around it. So much a stream can make memory hold of bytes that
    /// are none of its own, which a compressed one has for some kilobytes.
    pub(crate) const UNPROVEN_LEN: u64 = (64 << 20) + (64 << 10);
    /// Holes of the file that sections may have which are not RAM, all together,
    /// if the file holds less than this: else as much as it holds. Who wrote the
    /// stream left none, but a copy of it may have made some of zeros.
    pub(crate) const HOLLOW_LEN: u64 = 64 << 20;
    /// Sections that are shorter are not looked at for that.
    pub(crate) const NOTED_LEN: u64 = 1 << 20;
    /// Page records that wait, in such a stream, for the page size to show.
    pub(crate) const WAITING_RECORDS: usize = 1 << 20;
    /// Descriptions tried when more than one place looks like one.
    pub(crate) const VMDESC_CANDIDATES: usize = 8;
    /// Places in guest memory that are looked at as VMCOREINFO: real guests
    /// have some 10. Each takes at most 64 KiB to be read.
    pub(crate) const VMCOREINFO_CANDIDATES: usize = 4096;
    /// Ways into a guest's kernel that are tried: pairs of page tables and entry,
    /// of which one vCPU has one.
    pub(crate) const KERNEL_ENTRIES: usize = 64;
    /// How far below its entry the base of a Windows kernel is looked for, and
    /// how long it may be. That of Windows 11 has some 20 MiB.
    pub(crate) const NT_IMAGE_LEN: u64 = 64 << 20;
    /// Pages that begin as a program does and are looked at for that: between
    /// the entry of a Windows kernel and its base there is hardly one.
    pub(crate) const NT_IMAGE_CANDIDATES: usize = 256;
    /// The longest table of exports that is read: Windows 11 has some 110 KB.
    pub(crate) const NT_EXPORTS_LEN: u32 = 1 << 20;
    /// How much of a Linux kernel's image is searched for its banner, which is
    /// behind the code, and for VMCOREINFO. Distributions' kernels have some 30 MB of that.
    pub(crate) const KERNEL_IMAGE_LEN: u64 = 256 << 20;
    /// Page tables of the guest that are read. As many as map 512 GiB by 4 KiB,
    /// and any guest there is by larger pages.
    pub(crate) const PAGE_TABLES: u64 = 1 << 18;
}

/// Bytes in QEMU's pointer arrays: from `vmstate_info_nullptr`
/// (`migration/vmstate-types.c`).
pub(crate) mod pointer {
    /// Stands for an element that is NULL.
    pub(crate) const VMS_NULLPTR_MARKER: u8 = 0x30;
    /// Precedes an element that is there, in arrays allocated on load (11.0+).
    pub(crate) const VMS_MARKER_PTR_VALID: u8 = 0x31;
}

/// multifd channels, from `migration/multifd.h`.
pub(crate) mod multifd {
    /// The first four bytes of a channel and of each packet.
    pub(crate) const MULTIFD_MAGIC: u32 = 0x1122_3344;
    /// The only version that QEMU has written since 4.0.
    pub(crate) const MULTIFD_VERSION: u32 = 1;
    /// The channels meet here; one packet of each has it for one such point.
    pub(crate) const MULTIFD_FLAG_SYNC: u32 = 1;
    /// How the pages are compressed. Three bits before QEMU 9.1.
    pub(crate) const MULTIFD_FLAG_COMPRESSION_MASK: u32 = 0x1f << 1;
    /// A device's state, with a header of its own. Since QEMU 10.0.
    pub(crate) const MULTIFD_FLAG_DEVICE_STATE: u32 = 32 << 1;
    /// Bytes of guest memory that a packet is for: the pages in a packet are
    /// at most this over the page size, and its header has room for as many.
    pub(crate) const MULTIFD_PACKET_SIZE: u64 = 512 << 10;
    /// Bytes of a packet's payload. QEMU reads into a buffer of this size,
    /// which `deflate` and zstd cannot fill with a packet's pages.
    pub(crate) const PAYLOAD_LEN: u64 = 2 * MULTIFD_PACKET_SIZE;
    /// Bytes of the name in a packet, NUL included.
    pub(crate) const RAMBLOCK_LEN: u64 = 256;
    /// The largest window of zstd, as a power of two: that of level 20, the
    /// highest that QEMU takes. It is what one channel's reader allocates.
    pub(crate) const ZSTD_WINDOW_LOG: u32 = 25;
}
