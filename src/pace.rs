//! Which way bytes reach a file faster: through the page cache, or past it.
//!
//! Through the cache is a copy into memory, as a rule three times as fast as a
//! device. It is not where that memory has to be found first: a virtual
//! machine whose host takes free memory back waits for every page of it, and a
//! system that has reached its limit of unwritten pages waits for the device
//! anyway. Then a write past the cache, which needs no memory, is several
//! times as fast. Nothing tells beforehand; so each way's speed is measured as
//! it is used, and the other one is tried when the present one is slow.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are written one way before it is judged.
const SAMPLE_LEN: u64 = 4 << 20;

/// Bytes written past the cache before the cache is tried again; twice as many
/// after each try in vain. A single slow moment shall not decide for good.
const RETRY_LEN: u64 = 64 << 20;

/// Bytes that such a try takes.
const PROBE_LEN: u64 = 1 << 20;

/// A cache that takes this much, in bytes a second, is not worth an
/// experiment: no usual device takes more.
const FAST: f64 = 3e9;

/// How much faster the way past the cache must be to be taken. More than a
/// little: what is written through the cache can be read from it afterwards.
const MARGIN: f64 = 1.5;

/// A way into a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Through the page cache.
    Cached,
    /// Past it (`O_DIRECT`).
    Direct,
}

/// Chooses the way of each write by the speed of those before.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    way: Way,
    can_direct: bool,
    /// Bytes a second at which each way was last seen.
    cached: f64,
    direct: Option<f64>,
    /// Bytes after which the present way is judged.
    sample_len: u64,
    retry_len: u64,
    sample: Sample,
}

/// What has been written since the way was last chosen or judged, by all
/// threads, and how long at least one of them was at it.
#[derive(Default, Debug)]
struct Sample {
    /// Counts the changes of way.
    turn: u64,
    bytes: u64,
    busy: Duration,
    writers: u32,
    /// Writers of an earlier turn. As long as there are any, they keep others
    /// waiting, and nothing is measured.
    stragglers: u32,
    busy_since: Option<Instant>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            way: Way::Cached,
            can_direct: true,
            cached: f64::INFINITY,
            direct: None,
            sample_len: SAMPLE_LEN,
            retry_len: RETRY_LEN,
            sample: Sample::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn way(&self) -> Way {
        self.state().way
    }

    /// Hears that files cannot be written past the cache here.
    pub(crate) fn rule_out_direct(&self) {
        let mut state = self.state();
        state.can_direct = false;
        state.turn_to(Way::Cached, SAMPLE_LEN);
    }

    /// Chooses the way past the cache, untried.
    #[cfg(test)]
    pub(crate) fn start_with_direct(&self) {
        self.state().turn_to(Way::Direct, u64::MAX);
    }

    /// Times a write of `len` bytes, which goes `way`.
    pub(crate) fn timed<T>(&self, way: Way, len: u64, write: impl FnOnce() -> T) -> T {
        let turn = {
            let mut state = self.state();
            // A writer that chose before the way changed is a straggler.
            let is_late = state.way != way;
            state.sample.begin(Instant::now(), is_late)
        };
        let done = write();
        let now = Instant::now();
        let mut state = self.state();
        state.sample.end(now, turn, len);
        if state.sample.bytes >= state.sample_len {
            state.judge(now);
        }
        done
    }
}

impl Sample {
    /// Gives the turn that the writer belongs to.
    fn begin(&mut self, now: Instant, is_late: bool) -> Option<u64> {
        if is_late {
            self.stragglers += 1;
            return None;
        }
        self.writers += 1;
        if self.stragglers == 0 {
            self.busy_since.get_or_insert(now);
        }
        Some(self.turn)
    }

    fn end(&mut self, now: Instant, turn: Option<u64>, len: u64) {
        if turn != Some(self.turn) {
            self.stragglers -= 1;
            if self.stragglers == 0 && self.writers > 0 {
                self.busy_since = Some(now);
            }
            return;
        }
        self.writers -= 1;
        if let Some(since) = self.busy_since {
            self.bytes += len;
            if self.writers == 0 {
                self.busy += now - since;
                self.busy_since = None;
            }
        }
    }

    /// Bytes a second, and a new sample from `now` on.
    fn take(&mut self, now: Instant) -> f64 {
        let running = self.busy_since.map_or(Duration::ZERO, |since| now - since);
        let seconds = (self.busy + running).as_secs_f64().max(1e-9);
        let rate = self.bytes as f64 / seconds;
        self.bytes = 0;
        self.busy = Duration::ZERO;
        self.busy_since = self.busy_since.map(|_| now);
        rate
    }

    fn turn(&mut self) {
        let stragglers = self.stragglers + self.writers;
        *self = Self { turn: self.turn + 1, stragglers, ..Self::default() };
    }
}

impl State {
    fn judge(&mut self, now: Instant) {
        let rate = self.sample.take(now);
        match self.way {
            Way::Cached => self.judge_cached(rate),
            Way::Direct => self.judge_direct(rate),
        }
    }

    fn judge_cached(&mut self, rate: f64) {
        self.cached = rate;
        let is_slow = self.direct.map_or(rate < FAST, |direct| direct > rate * MARGIN);
        if !is_slow || !self.can_direct {
            self.sample_len = SAMPLE_LEN;
            return;
        }
        let was_probe = self.sample_len == PROBE_LEN;
        self.retry_len = if was_probe { self.retry_len.saturating_mul(2) } else { RETRY_LEN };
        let sample_len = if self.direct.is_none() { SAMPLE_LEN } else { self.retry_len };
        self.turn_to(Way::Direct, sample_len);
    }

    fn judge_direct(&mut self, rate: f64) {
        let is_first = self.direct.replace(rate).is_none();
        if rate < self.cached * MARGIN {
            self.turn_to(Way::Cached, SAMPLE_LEN);
        } else if is_first {
            self.sample_len = self.retry_len;
        } else {
            self.turn_to(Way::Cached, PROBE_LEN);
        }
    }

    fn turn_to(&mut self, way: Way, sample_len: u64) {
        self.sample_len = sample_len;
        if self.way != way {
            self.way = way;
            self.sample.turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `len` bytes at the speed that each way has, and gives how many
    /// of them went past the cache.
    fn write(state: &mut State, len: u64, cached: f64, direct: f64) -> u64 {
        const PIECE: u64 = 512 << 10;
        let mut now = Instant::now();
        let mut past = 0;
        for _ in 0..len / PIECE {
            let rate = if state.way == Way::Cached { cached } else { direct };
            past += if state.way == Way::Direct { PIECE } else { 0 };
            let turn = state.sample.begin(now, false);
            now += Duration::from_secs_f64(PIECE as f64 / rate);
            state.sample.end(now, turn, PIECE);
            if state.sample.bytes >= state.sample_len {
                state.judge(now);
            }
        }
        past
    }

    fn new_state() -> State {
        Pace::new().0.into_inner().unwrap()
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_fast_cache_is_kept() {
        assert_eq!(write(&mut new_state(), GIB, 6e9, 2e9), 0);
    }

    #[test]
    fn a_cache_that_turns_slow_is_left_for_a_faster_device() {
        let mut state = new_state();
        assert_eq!(write(&mut state, GIB, 6e9, 2e9), 0);
        let past = write(&mut state, GIB, 0.3e9, 2e9);
        assert!(past > GIB - GIB / 64, "{past}");
    }

    #[test]
    fn a_cache_that_was_slow_for_a_moment_is_taken_again() {
        let mut state = new_state();
        write(&mut state, 2 * SAMPLE_LEN, 0.3e9, 2e9);
        assert_eq!(state.way, Way::Direct);
        let past = write(&mut state, GIB, 6e9, 2e9);
        assert!(past <= 2 * RETRY_LEN, "{past}");
    }

    #[test]
    fn a_slow_device_is_tried_once() {
        assert_eq!(write(&mut new_state(), GIB, 1e9, 0.2e9), SAMPLE_LEN);
    }

    #[test]
    fn a_device_a_little_faster_than_the_cache_is_not_worth_it() {
        assert_eq!(write(&mut new_state(), GIB, 1.0e9, 1.2e9), SAMPLE_LEN);
    }

    #[test]
    fn without_direct_writes_the_cache_is_kept() {
        let pace = Pace::new();
        pace.rule_out_direct();
        assert_eq!(write(&mut pace.0.into_inner().unwrap(), GIB, 0.1e9, 2e9), 0);
    }

    #[test]
    fn writes_at_the_same_time_count_once() {
        let (mut sample, start) = (Sample::default(), Instant::now());
        let turns = [sample.begin(start, false), sample.begin(start, false)];
        sample.end(start + Duration::from_secs(1), turns[0], 10);
        sample.end(start + Duration::from_secs(2), turns[1], 10);
        let rate = sample.take(start + Duration::from_secs(5));
        assert!((rate - 10.0).abs() < 1e-6, "{rate}");
    }

    #[test]
    fn a_write_of_the_other_way_is_not_measured() {
        let (mut sample, start) = (Sample::default(), Instant::now());
        let old = sample.begin(start, false);
        sample.turn();
        let new = sample.begin(start, false);
        sample.end(start + Duration::from_secs(9), old, 1000);
        sample.end(start + Duration::from_secs(10), new, 10);
        let rate = sample.take(start + Duration::from_secs(10));
        assert!((rate - 10.0).abs() < 1e-6, "{rate}");
    }
}
