//! The manifest: the small JSON document that is signed and that everything else hangs on.
//!
//! Only `parse` makes a [`Manifest`] from bytes, and it checks every rule: whoever holds one holds
//! numbers within the limits that agree with each other. Unknown members are ignored, so that later
//! versions can add some; what a reader *must* know is listed in `criticalFeatures` and refused when
//! unknown.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::update::digest::Sha256;

use super::{
    error::ImageError,
    index::ChunkIndex,
    limits::{FORMAT_VERSION, MAX_AVERAGE, MAX_CHUNK, MAX_LIST, MAX_MANIFEST, MAX_WORD, SECTOR},
};

/// The target that every image has.
pub const ROOTFS: &str = "rootfs";
/// The target of the boot partition's image, which comes first if there is one.
pub const BOOT: &str = "boot";
/// The only method of cutting that this version knows: [`super::cut`].
pub const GEAR: &str = "gear";

/// What an image is, for whom, and the digests of what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Format version, [`FORMAT_VERSION`]; here once more because here it is signed.
    pub format: u32,
    /// Name of the product or project.
    pub name: String,
    /// Version of the firmware.
    pub version: String,
    /// Boards that can run it, as in the device tree's `compatible`; one must match.
    pub compatible: Vec<String>,
    /// When it was built. Informative: nothing is decided by a date.
    pub created: Timestamp,
    /// Never goes down on a device: raised when older versions must not come back.
    pub security_epoch: u64,
    /// The raw image as a whole: what `zstd -dc` gives.
    pub payload: Payload,
    /// Partition images, one after the other in the payload.
    pub images: Vec<PartitionImage>,
    /// How the payload was cut, so that a device can cut alike what it has. The index says where.
    pub chunking: Chunking,
    /// The chunk index.
    pub index: IndexRef,
    /// Features that a reader must know to install the image.
    #[serde(default)]
    pub critical_features: Vec<String>,
}

/// Size and digest of the raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// In bytes.
    pub size: u64,
    /// Of all bytes in order.
    pub sha256: Sha256,
}

/// The image of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionImage {
    /// The slot's partition: `rootfs` or `boot`.
    pub target: String,
    /// In bytes.
    pub size: u64,
    /// Of all bytes in order.
    pub sha256: Sha256,
}

/// How the payload was cut into chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// `gear`, or a method of a later version.
    pub method: String,
    /// No cut is looked for in so many bytes, for `gear`.
    #[serde(default)]
    pub min: u32,
    /// Wished size, in bytes.
    #[serde(default)]
    pub average: u32,
    /// A chunk ends here at the latest, but for holes, in bytes.
    #[serde(default)]
    pub max: u32,
}

impl Chunking {
    /// Content-defined, with the usual bounds for this average in bytes.
    #[must_use]
    pub fn content_defined(average: u32) -> Self {
        Self {
            method: GEAR.to_owned(),
            min: average / 4,
            average,
            max: average.saturating_mul(8),
        }
    }

    /// Whether [`super::Cutter`] can cut so.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.method == GEAR
    }

    fn check(&self) -> Result<(), ImageError> {
        check_word("chunking.method", &self.method, |c| c.is_ascii_graphic())?;
        if !self.is_known() {
            return Ok(());
        }
        let Self {
            min, average, max, ..
        } = *self;
        for (size, limit) in [(average, MAX_AVERAGE), (max, MAX_CHUNK)] {
            if size > limit {
                return Err(ImageError::TooLarge {
                    what: "one chunk",
                    size: size.into(),
                    limit: limit.into(),
                });
            }
        }
        if average == 0 || min > average || average > max {
            let why = format!("has sizes that contradict each other: {min}, {average}, {max}");
            return Err(invalid("chunking", why));
        }
        Ok(())
    }
}

/// The chunk index that belongs to this manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRef {
    /// Of the content of the index frame.
    pub sha256: Sha256,
    /// How many chunks.
    pub chunks: u64,
    /// Length of the content of the index frame, in bytes.
    pub size: u64,
}

impl Manifest {
    /// The bytes to be signed: indented JSON with a newline at the end, good to read and to diff.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("a manifest is plain data with string keys, which is always JSON");
        bytes.push(b'\n');
        bytes
    }

    /// The image for `rootfs`.
    #[must_use]
    pub fn rootfs(&self) -> &PartitionImage {
        // `check` refuses manifests without exactly one, the last.
        &self.images[self.images.len() - 1]
    }

    /// The image for `boot`, if there is one.
    #[must_use]
    pub fn boot(&self) -> Option<&PartitionImage> {
        self.images.iter().find(|image| image.target == BOOT)
    }

    /// Where each partition image ends in the payload.
    pub fn image_ends(&self) -> impl Iterator<Item = u64> + '_ {
        self.images.iter().scan(0, |end, image| {
            *end += image.size;
            Some(*end)
        })
    }

    /// Checks all rules that do not need the index.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.format != FORMAT_VERSION {
            return Err(ImageError::FormatVersion(self.format));
        }
        self.check_features()?;
        check_word("name", &self.name, |c| !c.is_control())?;
        check_word("version", &self.version, |c| c.is_ascii_graphic())?;
        self.chunking.check()?;
        check_list("compatible", &self.compatible)?;
        if self.compatible.is_empty() {
            return Err(invalid("compatible", "is empty: no board could install it"));
        }
        for board in &self.compatible {
            check_word("compatible", board, |c| c.is_ascii_graphic())?;
        }
        self.check_sizes()
    }

    fn check_features(&self) -> Result<(), ImageError> {
        // This version knows none. The text comes from the file: show only so much of it.
        match self.critical_features.first() {
            Some(feature) => Err(ImageError::CriticalFeature(shown(feature))),
            None => Ok(()),
        }
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        let Payload { size, sha256 } = self.payload;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            let why = format!("is {size} bytes, which is not a positive multiple of {SECTOR}");
            return Err(invalid("payload.size", why));
        }
        let targets: Vec<_> = self.images.iter().map(|i| i.target.as_str()).collect();
        if !matches!(targets.as_slice(), [ROOTFS] | [BOOT, ROOTFS]) {
            let other = targets
                .iter()
                .find(|target| ![ROOTFS, BOOT].contains(target));
            let target = other.or(targets.first()).copied().unwrap_or_default();
            return Err(ImageError::Target(shown(target)));
        }
        let whole = |image: &PartitionImage| image.size > 0 && image.size.is_multiple_of(SECTOR);
        let total = self
            .images
            .iter()
            .try_fold(0_u64, |total, image| total.checked_add(image.size));
        let one = self.images.len() == 1;
        if !self.images.iter().all(whole)
            || total != Some(size)
            || (one && self.rootfs().sha256 != sha256)
        {
            return Err(invalid("images", "do not add up to the payload"));
        }
        ChunkIndex::check_size(&self.index)
    }
}

/// Makes a manifest from bytes whose signature was verified before.
///
/// # Errors
/// When it is not the JSON of a manifest, breaks a limit or a rule, or asks for an unknown feature.
pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, ImageError> {
    if bytes.len() as u64 > u64::from(MAX_MANIFEST) {
        return Err(ImageError::TooLarge {
            what: "the manifest",
            size: bytes.len() as u64,
            limit: MAX_MANIFEST.into(),
        });
    }
    // A manifest that needs more than this version knows may also have another shape: name the
    // feature or version instead of a missing member.
    if let Ok(gate) = serde_json::from_slice::<Gate>(bytes) {
        if gate.format != FORMAT_VERSION {
            return Err(ImageError::FormatVersion(gate.format));
        }
        if let Some(feature) = gate.critical_features.first() {
            return Err(ImageError::CriticalFeature(shown(feature)));
        }
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(ImageError::ManifestSyntax)?;
    manifest.check()?;
    Ok(manifest)
}

/// The part of a manifest that says whether the rest can be understood.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Gate {
    format: u32,
    #[serde(default)]
    critical_features: Vec<String>,
}

fn invalid(field: &'static str, why: impl Into<String>) -> ImageError {
    ImageError::ManifestValue {
        field,
        why: why.into(),
    }
}

/// `text`, at most so long that a message stays readable.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

fn check_word(
    field: &'static str,
    text: &str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), ImageError> {
    if text.is_empty() || text.len() > MAX_WORD {
        let why = format!(
            "has an entry of {} bytes; 1 to {MAX_WORD} are allowed",
            text.len()
        );
        return Err(invalid(field, why));
    }
    match text.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(invalid(field, format!("contains {c:?}"))),
        None => Ok(()),
    }
}

fn check_list<T>(field: &'static str, list: &[T]) -> Result<(), ImageError> {
    if list.len() > MAX_LIST {
        let why = format!("has {} entries; at most {MAX_LIST} are allowed", list.len());
        return Err(invalid(field, why));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::update::failure::Coded;

    pub(crate) fn sample() -> Manifest {
        let sha256 = Sha256::of(b"rootfs");
        Manifest {
            format: FORMAT_VERSION,
            name: "weather station".to_owned(),
            version: "1.4.0".to_owned(),
            compatible: vec!["raspberrypi,4-model-b".to_owned()],
            created: "2026-01-02T03:04:05Z".parse().unwrap(),
            security_epoch: 3,
            payload: Payload { size: 4096, sha256 },
            images: vec![PartitionImage {
                target: ROOTFS.to_owned(),
                size: 4096,
                sha256,
            }],
            chunking: Chunking::content_defined(4096),
            index: IndexRef {
                sha256: Sha256::of(b"index"),
                chunks: 1,
                size: 32,
            },
            critical_features: Vec::new(),
        }
    }

    fn code_with(pointer: &str, value: Value) -> &'static str {
        let mut json = serde_json::to_value(sample()).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        parse(json.to_string().as_bytes())
            .map(|_| "accepted")
            .unwrap_or_else(|error| error.code())
    }

    #[test]
    fn a_manifest_survives_its_bytes_and_ignores_unknown_members() {
        let manifest = sample();
        assert_eq!(parse(&manifest.to_bytes()).unwrap(), manifest);
        let mut json = serde_json::to_value(&manifest).unwrap();
        json["later"] = json!({"anything": [1, 2]});
        json["payload"]["later"] = json!(null);
        assert_eq!(parse(json.to_string().as_bytes()).unwrap(), manifest);
    }

    #[test]
    fn the_members_have_the_documented_names() {
        let json = serde_json::to_value(sample()).unwrap();
        let mut names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(
            names.join(" "),
            "chunking compatible created criticalFeatures format images index name payload securityEpoch version"
        );
        assert_eq!(json["created"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn each_broken_rule_has_its_own_refusal() {
        for (pointer, value, code) in [
            ("/format", json!(2), "image-format-version"),
            (
                "/criticalFeatures",
                json!(["boot-partition"]),
                "image-feature-unknown",
            ),
            (
                "/images/0/target",
                json!("boot"),
                "image-target-unsupported",
            ),
            ("/images", json!([]), "image-target-unsupported"),
            ("/images/0/size", json!(512), "image-manifest-value"),
            (
                "/images/0/sha256",
                json!("0".repeat(64)),
                "image-manifest-value",
            ),
            ("/payload/size", json!(0), "image-manifest-value"),
            ("/payload/size", json!(4097), "image-manifest-value"),
            ("/payload/size", json!(-1), "image-manifest-syntax"),
            ("/payload/sha256", json!("abc"), "image-manifest-syntax"),
            ("/compatible", json!([]), "image-manifest-value"),
            ("/compatible", json!([""]), "image-manifest-value"),
            ("/compatible", json!(vec!["x"; 65]), "image-manifest-value"),
            ("/name", json!("two\nlines"), "image-manifest-value"),
            ("/version", json!(""), "image-manifest-value"),
            ("/version", json!("1 0"), "image-manifest-value"),
            ("/version", json!("9".repeat(129)), "image-manifest-value"),
            ("/created", json!("yesterday"), "image-manifest-syntax"),
            ("/chunking/max", json!(4_194_305), "image-limit-exceeded"),
            ("/chunking/average", json!(0), "image-manifest-value"),
            ("/chunking/average", json!(262_145), "image-limit-exceeded"),
            ("/chunking/min", json!(4097), "image-manifest-value"),
            ("/chunking/method", json!(""), "image-manifest-value"),
            ("/chunking/method", json!("later"), "accepted"),
            ("/index/chunks", json!(u64::MAX), "image-manifest-value"),
            ("/index/size", json!(1_u64 << 40), "image-limit-exceeded"),
            ("/index/size", json!(29), "image-manifest-value"),
            ("/index/size", json!(39), "image-manifest-value"),
        ] {
            assert_eq!(code_with(pointer, value.clone()), code, "{pointer} {value}");
        }
    }

    #[test]
    fn an_unknown_feature_is_named_even_when_the_rest_has_another_shape() {
        let error = parse(br#"{"format":1,"criticalFeatures":["x"]}"#).unwrap_err();
        assert_eq!(error.code(), "image-feature-unknown");
        let error = parse(br#"{"format":9}"#).unwrap_err();
        assert_eq!(error.code(), "image-format-version");
    }

    #[test]
    fn an_image_for_boot_stands_before_the_one_for_rootfs() {
        let with = |targets: &[(&str, u64)]| {
            let mut manifest = sample();
            let image = manifest.images[0].clone();
            manifest.images = targets
                .iter()
                .map(|(target, size)| PartitionImage {
                    target: (*target).to_owned(),
                    size: *size,
                    ..image
                })
                .collect();
            parse(&manifest.to_bytes()).map_err(|error| error.code())
        };
        let both = with(&[(BOOT, 512), (ROOTFS, 3584)]).unwrap();
        assert_eq!((both.rootfs().size, both.boot().unwrap().size), (3584, 512));
        assert_eq!(both.image_ends().collect::<Vec<_>>(), [512, 4096]);
        for (targets, code) in [
            (
                &[(ROOTFS, 3584), (BOOT, 512)][..],
                "image-target-unsupported",
            ),
            (
                &[(ROOTFS, 2048), (ROOTFS, 2048)],
                "image-target-unsupported",
            ),
            (&[(BOOT, 4096)], "image-target-unsupported"),
            (&[(BOOT, 512), (ROOTFS, 512)], "image-manifest-value"),
            (&[(BOOT, 0), (ROOTFS, 4096)], "image-manifest-value"),
            (&[(BOOT, 511), (ROOTFS, 3585)], "image-manifest-value"),
            (
                &[(BOOT, u64::MAX - 511), (ROOTFS, 4608)],
                "image-manifest-value",
            ),
        ] {
            assert_eq!(with(targets).unwrap_err(), code, "{targets:?}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = "[".repeat(100_000);
        assert_eq!(
            parse(deep.as_bytes()).unwrap_err().code(),
            "image-manifest-syntax"
        );
        let long = vec![b' '; MAX_MANIFEST as usize + 1];
        assert_eq!(parse(&long).unwrap_err().code(), "image-limit-exceeded");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_changed_manifest_is_refused_or_keeps_every_rule(
            at in any::<proptest::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = sample().to_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(manifest) = parse(&bytes) {
                manifest.check().unwrap();
            }
        }
    }
}
