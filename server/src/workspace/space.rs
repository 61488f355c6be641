//! How much of a file system is left to itself: a patch that would eat into that is refused before its
//! first byte is staged.

use super::fs::Space;

const GIB: u64 = 1 << 30;

/// What stays free whatever is asked for: 5 % of the file system, at most 1 GiB.
pub fn reserve(total: u64) -> u64 {
    (total / 20).min(GIB)
}

/// The patch needs more than the file system can give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no space for this patch: it needs {}, {} are available and {} of them stay free; make room on the server",
    shown(*need), shown(*available), shown(*reserve)
)]
pub struct NoSpace {
    pub need: u64,
    pub available: u64,
    pub reserve: u64,
}

/// Can `need` more bytes be written? Nothing at all always can.
pub fn check(need: u64, space: Space) -> Result<(), NoSpace> {
    let reserve = reserve(space.total);
    if need > 0 && space.available < need.saturating_add(reserve) {
        return Err(NoSpace { need, available: space.available, reserve });
    }
    Ok(())
}

/// `1.5 GiB`
fn shown(bytes: u64) -> String {
    let units = [("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reserves() {
        for (total, kept) in [(0, 0), (100 * MIB, 5 * MIB), (20 * GIB, GIB), (4000 * GIB, GIB)] {
            assert_eq!(reserve(total), kept, "{total}");
        }
    }

    #[test]
    fn needs() {
        for (need, total, available, fits) in [
            (0, 100 * MIB, 0, true),
            (1, 100 * MIB, 0, false),
            (1, 100 * MIB, 5 * MIB, false),
            (1, 100 * MIB, 5 * MIB + 1, true),
            (GIB, 100 * GIB, 2 * GIB, true),
            (GIB + 1, 100 * GIB, 2 * GIB, false),
            (u64::MAX, 100 * GIB, 50 * GIB, false),
        ] {
            assert_eq!(check(need, Space { total, available }).is_ok(), fits, "{need} of {available}");
        }
        let text = check(3 * GIB / 2, Space { total: 100 * MIB, available: 900 }).unwrap_err().to_string();
        assert!(text.contains("needs 1.5 GiB, 900 bytes are available and 5.0 MiB"), "{text}");
    }
}
