//! RFC 3339 times in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now. In a debug build `TUNESMITH_FAKE_CLOCK` may name a file of seconds that are added, for tests in which the clock
/// jumps: times are only ever shown, never decided on.
pub fn now() -> SystemTime {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os("TUNESMITH_FAKE_CLOCK")
        && let Some(offset) =
            std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i64>().ok())
    {
        let by = std::time::Duration::from_secs(offset.unsigned_abs());
        let now = SystemTime::now();
        return if offset < 0 { now - by } else { now + by };
    }
    SystemTime::now()
}

/// Now, as `2026-01-31T23:59:59.123Z`.
pub fn rfc3339_now() -> String {
    rfc3339(now())
}

/// A time as `2026-01-31T23:59:59.123Z`; times before 1970 read as 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Proleptic Gregorian date of a day count from 1970-01-01.
///
/// Counts in years that begin in March, so that a leap day is the last day of its year: 146,097 days make 400
/// years, and 153 days make five months.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Milliseconds since 1970 of a time that [`rfc3339`] wrote.
pub fn rfc3339_millis(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second, millis) = (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    // Years that begin in March, as in `civil`.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_moments() {
        let at = |seconds: u64, millis: u32| rfc3339(UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000));
        for millis in [0, 951_782_399_999, 951_782_400_001, 1_709_251_200_000, 4_107_542_399_123] {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(rfc3339_millis(&rfc3339(time)), Some(millis as i64));
        }
        assert_eq!(rfc3339_millis(""), None);
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.001Z");
        assert_eq!(at(1_709_251_199, 0), "2024-02-29T23:59:59.000Z");
        assert_eq!(at(1_709_251_200, 0), "2024-03-01T00:00:00.000Z");
        assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z", "2100 is no leap year");
    }
}
