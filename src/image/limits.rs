//! Every limit of the format in one place. A reader checks each **before** it allocates or reads what
//! the limited number describes, so that a hostile file costs no more than an honest one.

/// Version of the format, in the manifest frame and (signed) in the manifest.
pub const FORMAT_VERSION: u32 = 1;

/// Longest manifest, in bytes. A real one has about 1 KiB.
pub const MAX_MANIFEST: u32 = 256 * 1024;

/// Longest signatures block, in bytes. A minisign signature has about 350.
pub const MAX_SIGNATURES_LEN: u32 = 64 * 1024;

/// Most signatures in a block: each costs a public-key operation per trusted key.
pub const MAX_SIGNATURES: usize = 32;

/// Longest chunk index, in bytes: some 800,000 chunks.
pub const MAX_INDEX: u64 = 16 * 1024 * 1024;

/// Longest chunk before compression, in bytes.
pub const MAX_CHUNK: u32 = 4 * 1024 * 1024;

/// Longest compressed form of one chunk, in bytes: zstd grows incompressible data by less than this.
pub const MAX_FRAME: u32 = MAX_CHUNK + 64 * 1024;

/// Images are whole sectors of this many bytes: anything else is no partition image.
pub const SECTOR: u64 = 512;

/// Longest name, version, target or feature in a manifest, in bytes.
pub const MAX_WORD: usize = 128;

/// Most entries of a list in a manifest (`compatible`, `images`, `criticalFeatures`).
pub const MAX_LIST: usize = 64;

/// Most raw bytes before a chunk that its decoder may need.
pub const MAX_PREFIX: u32 = 1024 * 1024;

/// Raw bytes before a chunk that `image build` lets it refer to, unless told otherwise.
pub const DEFAULT_PREFIX: u32 = 192 * 1024;

/// Chunks end where a hole begins, and holes are whole blocks of this many bytes of zeros.
pub const BLOCK: usize = 4096;

/// Fewer zeros than this are no hole, in bytes.
pub const MIN_HOLE: usize = 64 * 1024;

/// A longer hole is several chunks, in bytes.
pub const MAX_HOLE: usize = 1024 * 1024;

/// Smallest average size of a chunk that `image build` takes, in bytes: below, the index outgrows what it saves.
pub const MIN_AVERAGE: u32 = 2 * 1024;

/// Largest average size of a chunk, in bytes.
pub const MAX_AVERAGE: u32 = 256 * 1024;

/// Average size of a chunk when none is given, in bytes, as long as [`AUTO_CHUNKS`] allow it.
pub const DEFAULT_AVERAGE: u32 = 16 * 1024;

/// Without a size given, chunks are made so large that there are about so many: a device keeps the index in memory.
pub const AUTO_CHUNKS: u64 = 150_000;

/// zstd level of `image build` when none is given.
pub const DEFAULT_LEVEL: i32 = 9;
