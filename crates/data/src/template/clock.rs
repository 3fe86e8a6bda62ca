//! The date and time a template sees through `strftime_now`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in civil time. Templates that print the date make the text depend on it, so it can be fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Seconds since 1970-01-01 00:00:00, counted in the clock that the template shall show.
    seconds: i64,
}

impl Now {
    /// The present time, UTC.
    pub fn utc() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { seconds: since.map_or(0, |d| d.as_secs() as i64) }
    }

    /// Midnight of a day of the proleptic Gregorian calendar (`month` and `day` from 1).
    pub fn date(year: i64, month: u32, day: u32) -> Self {
        // Days from civil: years start in March, so that the leap day comes last.
        let y = if month <= 2 { year - 1 } else { year };
        let era = y.div_euclid(400);
        let year_of_era = y.rem_euclid(400);
        let day_of_year = i64::from((153 * ((month + 9) % 12) + 2) / 5 + day - 1);
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        Self { seconds: (era * 146_097 + day_of_era - 719_468) * 86_400 }
    }

    /// `strftime` with the directives that chat templates use.
    ///
    /// # Errors
    /// The directive that is not known.
    pub(super) fn format(self, pattern: &str) -> Result<String, String> {
        use std::fmt::Write;
        let c = Civil::of(self.seconds);
        let mut out = String::new();
        let mut chars = pattern.chars();
        while let Some(ch) = chars.next() {
            if ch != '%' {
                out.push(ch);
                continue;
            }
            let mut directive = chars.next();
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            let hour12 = (c.hour + 11) % 12 + 1;
            let month = MONTHS[(c.month - 1) as usize];
            let weekday = WEEKDAYS[c.weekday as usize];
            let (number, width) = match directive {
                Some('d') => (c.day, 2),
                Some('m') => (c.month, 2),
                Some('y') => (c.year.rem_euclid(100), 2),
                Some('Y') => (c.year, 4),
                Some('H') => (c.hour, 2),
                Some('I') => (hour12, 2),
                Some('M') => (c.minute, 2),
                Some('S') => (c.second, 2),
                Some('j') => (c.day_of_year, 3),
                other => {
                    let text = match other {
                        Some('b' | 'h') if !bare => &month[..3],
                        Some('B') if !bare => month,
                        Some('a') if !bare => &weekday[..3],
                        Some('A') if !bare => weekday,
                        Some('p') if !bare => ["AM", "PM"][usize::from(c.hour >= 12)],
                        Some('%') if !bare => "%",
                        _ => return Err(format!("strftime_now does not know a directive in `{pattern}`")),
                    };
                    out.push_str(text);
                    continue;
                }
            };
            let width = if bare { 0 } else { width };
            // Writing into a String cannot fail.
            let _ = write!(out, "{number:0width$}");
        }
        Ok(out)
    }
}

impl Default for Now {
    fn default() -> Self {
        Self::utc()
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    weekday: i64,
    day_of_year: i64,
}

impl Civil {
    fn of(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let in_day = seconds.rem_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let new_year = Now::date(year, 1, 1).seconds.div_euclid(86_400);
        Self {
            year,
            month,
            day: from_march - (153 * march_month + 2) / 5 + 1,
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: days - new_year + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_known_dates() {
        let f = |n: Now, p: &str| n.format(p).unwrap();
        assert_eq!(f(Now::date(2024, 7, 26), "%d %b %Y, %A"), "26 Jul 2024, Friday");
        assert_eq!(f(Now::date(2024, 2, 29), "%Y-%m-%d %j %a"), "2024-02-29 060 Thu");
        assert_eq!(f(Now::date(1970, 1, 1), "%-d %B %y %H:%M:%S %I %p %%"), "1 January 70 00:00:00 12 AM %");
        assert_eq!(f(Now { seconds: 1_709_251_199 }, "%Y-%m-%d %H:%M:%S %p %I"), "2024-02-29 23:59:59 PM 11");
        assert_eq!(f(Now::date(1900, 12, 31), "%j %Y %A"), "365 1900 Monday");
    }

    #[test]
    fn an_unknown_directive_is_an_error() {
        assert_eq!(
            Now::date(2024, 1, 1).format("%d %Q").unwrap_err(),
            "strftime_now does not know a directive in `%d %Q`"
        );
        assert!(Now::utc().format("%").is_err());
    }
}
