//! Which images this device takes: the checks that need no more than an image's header.
//!
//! Pure; each refusal says what the image is, what the device wants, and what to do.

use super::saved::KnownBad;
use crate::{
    config::TrustConfig,
    update::{
        digest::Sha256,
        failure::{Class, Coded},
        request::Request,
    },
};

/// What a header offers.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Version; `None` for a plain image whose request names none.
    pub version: Option<String>,
    /// Hardware names; `None` for a plain image, which has no such list.
    pub compatible: Option<Vec<String>>,
    /// Security epoch; 0 for a plain image.
    pub security_epoch: u64,
    /// Raw size of the root file system in bytes, when known.
    pub size: Option<u64>,
    /// Raw size of the boot partition's image in bytes; `None` when it has none.
    pub boot: Option<u64>,
    /// Digest of the raw bytes, when known.
    pub payload: Option<Sha256>,
}

/// What the device is and has.
#[derive(Debug, Clone)]
pub struct Device<'a> {
    /// `[trust]`.
    pub trust: &'a TrustConfig,
    /// Hardware names of the device.
    pub compatible: &'a [String],
    /// Version that runs.
    pub version: Option<&'a str>,
    /// Highest security epoch ever confirmed.
    pub security_epoch: u64,
    /// Bytes of the target slot's root file system.
    pub capacity: u64,
    /// Bytes of its boot partition, if it has one.
    pub boot: Option<u64>,
    /// Images that failed their trial.
    pub known_bad: &'a [KnownBad],
}

/// Why an image is not for this device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Made for other hardware.
    #[error(
        "the image is for {image}, this device is {device}; build the image with --compatible, or correct \
         trust.compatible"
    )]
    Incompatible {
        /// The image's list.
        image: String,
        /// The device's list.
        device: String,
    },
    /// The device does not know its own name.
    #[error("this device has no hardware name to compare the image's with; set trust.compatible")]
    NoHardwareName,
    /// Not the version that was asked for.
    #[error("the request names version {asked}, the image is version {found}; correct one of them")]
    VersionMismatch {
        /// In the request.
        asked: String,
        /// In the image.
        found: String,
    },
    /// Older than what runs.
    #[error(
        "version {found} is older than {running}, which runs; set trust.downgrade = \"allow\" to permit it"
    )]
    Downgrade {
        /// In the image.
        found: String,
        /// Running.
        running: String,
    },
    /// Older than a security fix.
    #[error(
        "the image's security epoch is {found} (a plain image has none: 0), this device has confirmed {confirmed}, and \
         it never goes down; build the image with --security-epoch {confirmed} or higher"
    )]
    Epoch {
        /// In the image.
        found: u64,
        /// Confirmed.
        confirmed: u64,
    },
    /// Larger than the slot.
    #[error(
        "the image is {size} bytes, the slot holds {capacity}; shrink the root file system or grow the partition"
    )]
    TooLarge {
        /// Raw bytes of the image.
        size: u64,
        /// Bytes of the slot.
        capacity: u64,
    },
    /// Boot files for a device that has no place for them.
    #[error(
        "the image brings a boot partition, but the slots of this device have none; name them in slots.a.boot and \
         slots.b.boot, or build the image without --boot"
    )]
    NoBootPartition,
    /// The boot files are larger than their partition.
    #[error(
        "the image's boot partition has {size} bytes, the slot's holds {capacity}; shrink it or grow the partition"
    )]
    BootTooLarge {
        /// Raw bytes in the image.
        size: u64,
        /// Bytes of the partition.
        capacity: u64,
    },
    /// Failed here before.
    #[error(
        "this image was rolled back before ({reason}); build a repaired one, or ask with \"force\": true"
    )]
    KnownBad {
        /// Why, then.
        reason: String,
    },
}

impl Coded for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::NoBootPartition => "boot-partition-missing",
            Self::BootTooLarge { .. } => "boot-partition-too-small",
            Self::Incompatible { .. } => "image-incompatible",
            Self::NoHardwareName => "hardware-name-missing",
            Self::VersionMismatch { .. } => "version-mismatch",
            Self::Downgrade { .. } => "version-downgrade",
            Self::Epoch { .. } => "security-epoch",
            Self::TooLarge { .. } => "image-too-large",
            Self::KnownBad { .. } => "known-bad",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// Checks `offer` against the device and the request.
///
/// # Errors
/// The first reason not to install it.
pub fn admit(offer: &Offer, request: &Request, device: &Device<'_>) -> Result<(), Refusal> {
    if let Some(image) = &offer.compatible {
        if device.compatible.is_empty() {
            return Err(Refusal::NoHardwareName);
        }
        if !image.iter().any(|name| device.compatible.contains(name)) {
            return Err(Refusal::Incompatible {
                image: image.join(", "),
                device: device.compatible.join(", "),
            });
        }
    }
    if let (Some(asked), Some(found)) = (&request.version, &offer.version)
        && asked != found
    {
        return Err(Refusal::VersionMismatch {
            asked: asked.clone(),
            found: found.clone(),
        });
    }
    // A plain image has no epoch, so it is of the lowest: else an old one could bring an old hole back.
    if offer.security_epoch < device.security_epoch {
        return Err(Refusal::Epoch {
            found: offer.security_epoch,
            confirmed: device.security_epoch,
        });
    }
    if let (Some(found), Some(running)) = (&offer.version, device.version)
        && !device.trust.allow_downgrade
        && compare_versions(found, running).is_lt()
    {
        return Err(Refusal::Downgrade {
            found: found.clone(),
            running: running.to_owned(),
        });
    }
    if let Some(size) = offer.size
        && size > device.capacity
    {
        return Err(Refusal::TooLarge {
            size,
            capacity: device.capacity,
        });
    }
    match (offer.boot, device.boot) {
        (Some(_), None) => return Err(Refusal::NoBootPartition),
        (Some(size), Some(capacity)) if size > capacity => {
            return Err(Refusal::BootTooLarge { size, capacity });
        }
        _ => {}
    }
    if !request.force
        && let Some(bad) = device
            .known_bad
            .iter()
            .find(|bad| Some(bad.payload) == offer.payload)
    {
        return Err(Refusal::KnownBad {
            reason: bad.failure.to_string(),
        });
    }
    Ok(())
}

/// Orders versions as people read them: runs of digits by value, the rest as text, and a `-` or `~` part
/// (`1.4.0-rc1`) before the version without it.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(part)) => {
                if part.starts_pre_release() {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            (Some(part), None) => {
                if part.starts_pre_release() {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
            (Some(x), Some(y)) => x.compare(&y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

enum Part<'a> {
    Number(&'a str),
    Text(&'a str),
}

impl Part<'_> {
    fn starts_pre_release(&self) -> bool {
        matches!(self, Part::Text(text) if text.starts_with(['-', '~']))
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            // Without leading zeros the longer run of digits is the larger number, however long.
            (Part::Number(x), Part::Number(y)) => {
                let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (Part::Text(x), Part::Text(y)) => {
                let pre = |part: &Self| !part.starts_pre_release();
                pre(self).cmp(&pre(other)).then_with(|| x.cmp(y))
            }
            (Part::Number(_), Part::Text(_)) => std::cmp::Ordering::Greater,
            (Part::Text(_), Part::Number(_)) => std::cmp::Ordering::Less,
        }
    }
}

/// Splits where digits begin or end; build metadata after `+` does not count.
fn parts(version: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = version.split('+').next().unwrap_or_default();
    std::iter::from_fn(move || {
        let digits = rest.chars().next()?.is_ascii_digit();
        let end = rest
            .find(|c: char| c.is_ascii_digit() != digits)
            .unwrap_or(rest.len());
        let (part, tail) = rest.split_at(end);
        rest = tail;
        Some(if digits {
            Part::Number(part)
        } else {
            Part::Text(part)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::config::PlainTrust;
    use crate::update::{failure::Failure, request::Origin};

    fn trust() -> TrustConfig {
        TrustConfig {
            key_dirs: vec![],
            revoked_dirs: vec![],
            threshold: 1,
            plain: PlainTrust::Digest,
            allow_unsigned: false,
            allow_downgrade: false,
            compatible: vec![],
        }
    }

    fn offer() -> Offer {
        Offer {
            version: Some("1.4.0".into()),
            compatible: Some(vec!["rpi4".into(), "rpi5".into()]),
            security_epoch: 3,
            size: Some(100),
            boot: None,
            payload: Some(Sha256::of(b"x")),
        }
    }

    fn request() -> Request {
        Request::new("https://h/x".parse().unwrap(), Origin::Method)
    }

    fn check(
        change: impl FnOnce(&mut Offer, &mut Request, &mut Device<'_>),
    ) -> Result<(), &'static str> {
        let (trust, compatible) = (trust(), vec!["rpi5".to_owned()]);
        let bad = KnownBad {
            version: Some("1.3.9".into()),
            payload: Sha256::of(b"bad"),
            failure: Failure::new("health-check-failed", Class::Final, "no network"),
        };
        let known_bad = [bad];
        let (mut offer, mut request) = (offer(), request());
        let mut device = Device {
            trust: &trust,
            compatible: &compatible,
            version: Some("1.3.0"),
            security_epoch: 3,
            capacity: 100,
            boot: None,
            known_bad: &known_bad,
        };
        change(&mut offer, &mut request, &mut device);
        admit(&offer, &request, &device).map_err(|refusal| refusal.code())
    }

    #[test]
    fn a_fitting_image_is_taken_and_each_misfit_has_its_own_code() {
        assert_eq!(check(|_, _, _| {}), Ok(()));
        assert_eq!(
            check(|o, _, _| o.compatible = Some(vec!["x".into()])),
            Err("image-incompatible")
        );
        assert_eq!(
            check(|_, _, d| d.compatible = &[]),
            Err("hardware-name-missing")
        );
        assert_eq!(
            check(|_, r, _| r.version = Some("1.4.1".into())),
            Err("version-mismatch")
        );
        assert_eq!(
            check(|o, _, _| o.version = Some("1.2.9".into())),
            Err("version-downgrade")
        );
        assert_eq!(check(|o, _, _| o.security_epoch = 2), Err("security-epoch"));
        assert_eq!(check(|o, _, _| o.size = Some(101)), Err("image-too-large"));
        let boot = |image, slot| check(|o, _, d| (o.boot, d.boot) = (image, slot));
        assert_eq!(boot(Some(7), None), Err("boot-partition-missing"));
        assert_eq!(boot(Some(7), Some(6)), Err("boot-partition-too-small"));
        assert_eq!(boot(Some(7), Some(7)), Ok(()));
        // An image without boot files leaves the partition alone.
        assert_eq!(boot(None, Some(7)), Ok(()));
        assert_eq!(
            check(|o, _, _| o.payload = Some(Sha256::of(b"bad"))),
            Err("known-bad")
        );
    }

    #[test]
    fn force_passes_the_memory_of_bad_images_but_no_check() {
        let bad = Some(Sha256::of(b"bad"));
        assert_eq!(check(|o, r, _| (o.payload, r.force) = (bad, true)), Ok(()));
        assert_eq!(
            check(|o, r, _| (o.size, r.force) = (Some(101), true)),
            Err("image-too-large")
        );
    }

    #[test]
    fn versions_compare_as_people_read_them() {
        let sorted = [
            "1.0-rc1",
            "1.0-rc2",
            "1.0",
            "1.0.1",
            "1.2",
            "1.10",
            "2024.1",
            "2024.01.2",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(
                compare_versions(pair[0], pair[1]),
                Ordering::Less,
                "{pair:?}"
            );
            assert_eq!(
                compare_versions(pair[1], pair[0]),
                Ordering::Greater,
                "{pair:?}"
            );
        }
        assert_eq!(compare_versions("1.0+build5", "1.0"), Ordering::Equal);
        assert_eq!(compare_versions("v1.2", "v1.10"), Ordering::Less);
    }

    proptest! {
        #[test]
        fn version_order_is_antisymmetric_and_never_panics(a in ".{0,12}", b in "[0-9a.~+-]{0,12}") {
            prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
            prop_assert_eq!(compare_versions(&a, &a), Ordering::Equal);
        }
    }

    #[test]
    fn numbers_beyond_64_bits_compare_by_value() {
        let (small, large) = ("9".repeat(30), format!("1{}", "0".repeat(30)));
        assert_eq!(compare_versions(&small, &large), Ordering::Less);
    }
}
