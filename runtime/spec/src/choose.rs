//! Which entry of an index fits: a pure function of the entries and of `--platform`.

use crate::Platform;
use crate::image::Descriptor;

/// Chooses the entry of an index to use, or `None` when no entry fits.
///
/// With `wanted`, entries of that platform only: the Wasm platforms are one family in which the
/// exact os comes first; for the others os and architecture must be equal and the variant
/// compatible. Without it, an entry for the host's Linux, else a Wasm entry. Entries for
/// `unknown/unknown` (attestations) and entries that name no platform never fit. Among equals
/// the first one is taken.
#[must_use]
pub fn choose<'a>(entries: &'a [Descriptor], wanted: Option<&Platform>) -> Option<&'a Descriptor> {
    match wanted {
        Some(wanted) => best(entries, |have| rank(wanted, have)),
        None => {
            let host = Platform::host();
            best(entries, |have| rank(&host, have))
                .or_else(|| best(entries, |have| have.is_wasm().then_some(0)))
        }
    }
}

fn best(entries: &[Descriptor], rank: impl Fn(&Platform) -> Option<u32>) -> Option<&Descriptor> {
    let ranked = entries.iter().filter_map(|entry| {
        let platform = entry.platform.as_ref().filter(|p| !p.is_unknown())?;
        Some((rank(platform)?, entry))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
}

/// Says how well a platform fits, 0 best; `None` when it does not.
fn rank(wanted: &Platform, have: &Platform) -> Option<u32> {
    if wanted.is_wasm() {
        if !have.is_wasm() {
            return None;
        }
        let os = u32::from(!wanted.os.eq_ignore_ascii_case(&have.os));
        let arch = u32::from(!wanted.architecture.eq_ignore_ascii_case(&have.architecture));
        return Some(os * 2 + arch);
    }
    let (want_arch, have_arch) = (wanted.normal_architecture(), have.normal_architecture());
    if !wanted.os.eq_ignore_ascii_case(&have.os) || want_arch != have_arch {
        return None;
    }
    let level = |p: &Platform| variant_level(&want_arch, p.variant.as_deref());
    match (level(wanted), level(have)) {
        // A lower level runs on a higher one; the nearest is best.
        (Some(want), Some(have)) => want.checked_sub(have),
        _ => (wanted.variant == have.variant || wanted.variant.is_none()).then_some(0),
    }
}

/// Numbers the variants that are ordered; an absent one is the architecture's default.
fn variant_level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let default = match architecture {
        "amd64" => "v1",
        "arm64" => "v8",
        "arm" => "v7",
        _ => return None,
    };
    let text = variant.filter(|v| !v.is_empty()).unwrap_or(default);
    text.strip_prefix('v').unwrap_or(text).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, media};

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |(number, text): (usize, &&str)| {
            let mut parts = text.split('/').map(str::to_owned);
            Descriptor {
                media_type: media::OCI_MANIFEST.to_owned(),
                digest: Digest::from_sha256([u8::try_from(number).unwrap(); 32]),
                size: 1,
                platform: parts.next().filter(|os| !os.is_empty()).map(|os| Platform {
                    os,
                    architecture: parts.next().unwrap_or_default(),
                    variant: parts.next(),
                }),
                annotations: Default::default(),
                artifact_type: None,
            }
        };
        platforms.iter().enumerate().map(entry).collect()
    }

    fn chosen(platforms: &[&str], wanted: Option<&str>) -> Option<u8> {
        let wanted = wanted.map(|text| text.parse::<Platform>().unwrap());
        choose(&index(platforms), wanted.as_ref()).map(|d| d.digest.as_bytes()[0])
    }

    fn host() -> String {
        Platform::host().to_string()
    }

    #[test]
    fn without_a_wish_the_hosts_linux_wins_over_wasm() {
        assert_eq!(
            chosen(&["wasip1/wasm", "linux/s390x", &host()], None),
            Some(2)
        );
    }

    #[test]
    fn without_a_wish_an_index_of_wasm_alone_needs_no_flag() {
        assert_eq!(
            chosen(&["linux/s390x", "unknown/unknown", "wasip2/wasm"], None),
            Some(2)
        );
    }

    #[test]
    fn attestations_and_entries_without_platform_never_fit() {
        assert_eq!(chosen(&["unknown/unknown", ""], None), None);
        assert_eq!(chosen(&["unknown/unknown"], Some("linux/amd64")), None);
    }

    #[test]
    fn the_wasm_platforms_are_one_family_with_the_exact_os_first() {
        let entries = ["linux/amd64", "wasi/wasm32", "wasip1/wasm", "Wasip2/Wasm"];
        assert_eq!(chosen(&entries, Some("wasip2/wasm")), Some(3));
        assert_eq!(chosen(&entries, Some("wasip1/wasm")), Some(2));
        assert_eq!(chosen(&entries, Some("wasi/wasm")), Some(1));
        assert_eq!(chosen(&entries, Some("linux/wasm")), Some(2));
        assert_eq!(chosen(&["linux/amd64", "js/wasm"], Some("wasm")), None);
    }

    #[test]
    fn a_wish_for_linux_is_never_answered_with_wasm() {
        assert_eq!(chosen(&["wasip1/wasm"], Some("linux/amd64")), None);
        assert_eq!(chosen(&["linux/wasm"], Some("linux/amd64")), None);
    }

    #[test]
    fn variants_are_compatible_downwards_and_the_nearest_wins() {
        assert_eq!(
            chosen(
                &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"],
                Some("linux/arm")
            ),
            Some(2)
        );
        assert_eq!(
            chosen(
                &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"],
                Some("linux/arm/v6")
            ),
            Some(1)
        );
        assert_eq!(chosen(&["linux/arm/v7"], Some("linux/arm/v6")), None);
        assert_eq!(chosen(&["linux/arm64/v8"], Some("linux/aarch64")), Some(0));
        assert_eq!(
            chosen(&["linux/amd64/v3", "linux/x86_64"], Some("linux/amd64")),
            Some(1)
        );
        assert_eq!(chosen(&["linux/amd64/v3"], Some("linux/amd64")), None);
    }
}
