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

/// Longest chunk index, in bytes: 1.6 million chunks, 400 GiB at the default chunk size.
pub const MAX_INDEX: u64 = 64 * 1024 * 1024;

/// Longest chunk before compression, in bytes.
pub const MAX_CHUNK: u32 = 4 * 1024 * 1024;

/// Longest compressed frame of one chunk, in bytes: zstd grows incompressible data by less than this.
pub const MAX_FRAME: u32 = MAX_CHUNK + 64 * 1024;

/// Images are whole sectors of this many bytes: anything else is no partition image.
pub const SECTOR: u64 = 512;

/// Longest name, version, target or feature in a manifest, in bytes.
pub const MAX_WORD: usize = 128;

/// Most entries of a list in a manifest (`compatible`, `images`, `criticalFeatures`).
pub const MAX_LIST: usize = 64;

/// Chunk size of `image build` when none is given, in bytes.
pub const DEFAULT_CHUNK: u32 = 256 * 1024;

/// Smallest chunk size that `image build` takes: a smaller one has more index than data.
pub const MIN_CHUNK: u32 = 4 * 1024;

/// zstd level of `image build` when none is given.
pub const DEFAULT_LEVEL: i32 = 9;
