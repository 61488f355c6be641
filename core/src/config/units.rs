//! Durations (`250ms`, `2s`, `5m`, `1h`) and sizes (`64KiB`) as people write them: a whole number and
//! a unit, nothing else.

use std::time::Duration;

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Why text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("`{text}` does not start with a whole number; write it like `{example}`")]
    NoNumber { text: String, example: &'static str },
    #[error("`{text}` has no unit; write it like `{example}` (units: {units})")]
    NoUnit { text: String, example: &'static str, units: String },
    #[error("`{unit}` is no unit here; write it like `{example}` (units: {units})")]
    UnknownUnit { unit: String, example: &'static str, units: String },
    #[error("`{text}` is too large")]
    TooLarge { text: String },
}

/// Reads `250ms`, `2s`, `5m`, `1h` or `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &DURATIONS, "30s").map(Duration::from_millis)
}

/// Reads `512B`, `64KiB`, `10MiB`, `1GiB` or `2TiB` into bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse(text, &SIZES, "64KiB")
}

fn parse(text: &str, units: &[(&'static str, u64)], example: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shown = || text.escape_debug().to_string();
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if number.is_empty() {
        return Err(UnitError::NoNumber { text: shown(), example });
    }
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Err(UnitError::NoUnit { text: shown(), example, units: names() });
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError::UnknownUnit {
            unit: unit.escape_debug().to_string(),
            example,
            units: names(),
        });
    };
    let value = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor));
    value.ok_or_else(|| UnitError::TooLarge { text: shown() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("2s", 2_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
            (" 2 s ", 2_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, says) in [
            ("", "does not start with a whole number"),
            ("s", "does not start with a whole number"),
            ("-1s", "does not start with a whole number"),
            ("5", "has no unit"),
            ("5 sec", "`sec` is no unit"),
            ("1.5s", "`.5s` is no unit"),
            ("1M", "`M` is no unit"),
            ("99999999999999999999s", "too large"),
            ("18446744073709551615d", "too large"),
        ] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0B", 0), ("64KiB", 65_536), ("1MiB", 1 << 20), ("1GiB", 1 << 30), ("2TiB", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, says) in [
            ("64", "has no unit"),
            ("64KB", "`KB` is no unit"),
            ("64k", "B, KiB, MiB"),
            ("99999999TiB", "too large"),
        ] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
