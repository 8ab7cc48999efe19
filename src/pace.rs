//! Which way bytes reach a file fastest: through the page cache in long pieces
//! or in short ones, or past it.
//!
//! Through the cache is a copy into memory, as a rule three times as fast as a
//! device, and the longer the pieces, the larger the folios that the kernel
//! takes for them and the fewer of them it has to look after. It is not so
//! where that memory has to be found first. A virtual machine whose host takes
//! free memory back waits for every page of it; but what it takes back are large
//! blocks, so short pieces still find memory, in what lies between those in use.
//! A system that has reached its limit of unwritten pages waits for the device
//! anyway. Then a write past the cache, which needs no memory, is several times
//! as fast. Nothing tells beforehand; so each way's speed is measured as it is
//! used, and the others are tried when the present one is slow.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::extract::{PIECE_LEN, WINDOW_LEN};

/// A cache that takes this much, in bytes a second, is not worth an experiment.
const FAST: f64 = 3e9;

/// Bytes written one of the other ways before the first one is tried again;
/// twice as many after each try in vain, up to [`MAX_LEN`]. A single slow moment
/// shall not decide for good.
const RETRY_LEN: u64 = 32 << 20;

/// Bytes in a row that a cache is slow before the device is tried; twice as many
/// after each try in vain, up to [`MAX_LEN`]. A device that is behind with what
/// the cache has for it may take a tenth of a second for a try.
const DEVICE_LEN: u64 = 16 << 20;

/// The most that lies between two tries.
const MAX_LEN: u64 = 256 << 20;

fn doubled(len: u64) -> u64 {
    (len * 2).min(MAX_LEN)
}

/// The length of short pieces.
const SHORT_LEN: u64 = 128 << 10;

/// A way into a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Through the page cache, in pieces of [`PIECE_LEN`].
    Cached,
    /// Through it in pieces of [`SHORT_LEN`].
    Short,
    /// Past it (`O_DIRECT`), in pieces of [`WINDOW_LEN`]: each is a request that
    /// the device answers before the next.
    Direct,
}

impl Way {
    /// In the order in which they are tried.
    const ALL: [Self; 3] = [Self::Cached, Self::Short, Self::Direct];

    pub(crate) fn piece_len(self) -> u64 {
        match self {
            Self::Cached => PIECE_LEN,
            Self::Short => SHORT_LEN,
            Self::Direct => WINDOW_LEN,
        }
    }

    /// Bytes that are written this way before it is judged: few, as a slow moment
    /// of the cache costs ten times what a fast one does; more of a device, which
    /// is slow to begin.
    fn sample_len(self) -> u64 {
        match self {
            Self::Cached | Self::Short => 2 << 20,
            Self::Direct => 8 << 20,
        }
    }

    /// Bytes that a try of this way takes.
    fn probe_len(self) -> u64 {
        match self {
            Self::Cached | Self::Short => 1 << 20,
            Self::Direct => WINDOW_LEN,
        }
    }

    /// How many times as fast as the first way it must be to be taken. More than
    /// a little: speeds vary, and what is written through the cache can be read
    /// from it afterwards.
    fn margin(self) -> f64 {
        match self {
            Self::Cached => 1.0,
            Self::Short => 1.2,
            Self::Direct => 1.5,
        }
    }
}

/// Chooses the way of each write by the speed of those before.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    way: Way,
    can_direct: bool,
    /// Bytes a second at which each way was last seen, in the order of
    /// [`Way::ALL`]; none if it has not been since all were last tried.
    rates: [Option<f64>; 3],
    /// The way that the present tries are to replace, if any are under way.
    tried_from: Option<Way>,
    /// The speed for which the present way was taken.
    taken_for: f64,
    /// Bytes written since the last tries.
    since_tries: u64,
    /// After how many the next are due.
    retry_len: u64,
    /// Bytes for which the cache has been slow without a break.
    slow_len: u64,
    /// After how many the device is tried.
    device_len: u64,
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
            rates: [None; 3],
            tried_from: None,
            taken_for: f64::INFINITY,
            since_tries: 0,
            retry_len: RETRY_LEN,
            slow_len: 0,
            device_len: DEVICE_LEN,
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
        state.set_rate(Way::Direct, None);
        if state.way == Way::Direct {
            let way = state.best();
            state.settle(way);
        }
    }

    /// Takes a way for good.
    #[cfg(test)]
    pub(crate) fn fix(&self, way: Way) {
        let mut state = self.state();
        state.taken_for = 0.0;
        state.retry_len = u64::MAX;
        state.turn_to(way);
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
        state.judge(now);
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
    fn rate(&self, way: Way) -> Option<f64> {
        self.rates.get(way as usize).copied().flatten()
    }

    fn set_rate(&mut self, way: Way, rate: Option<f64>) {
        if let Some(known) = self.rates.get_mut(way as usize) {
            *known = rate;
        }
    }

    /// Looks at what has been written, if it is enough to tell how fast the
    /// present way is, and chooses the next.
    fn judge(&mut self, now: Instant) {
        let is_trying = self.tried_from.is_some();
        let enough = if is_trying { self.way.probe_len() } else { self.way.sample_len() };
        let bytes = self.sample.bytes;
        if bytes < enough {
            return;
        }
        let rate = self.sample.take(now);
        self.since_tries += bytes;
        if self.way != Way::Direct {
            self.slow_len = if rate < FAST { self.slow_len + bytes } else { 0 };
        }
        if !is_trying {
            if !self.is_to_be_replaced(rate) {
                return;
            }
            if self.way == Way::Cached && self.taken_for >= FAST {
                // Fast for a moment only: long pieces are not worth a try soon.
                let has_lasted = self.since_tries >= self.retry_len;
                self.retry_len = if has_lasted { RETRY_LEN } else { doubled(self.retry_len) };
            }
            self.rates = [None; 3];
            self.tried_from = Some(self.way);
        }
        self.set_rate(self.way, Some(rate));
        let is_found = is_trying && self.way != Way::Direct && rate >= FAST;
        match self.untried() {
            Some(way) if !is_found => self.turn_to(way),
            _ => self.settle(self.best()),
        }
    }

    /// Whether other ways shall be tried, now that the present one has `rate`.
    fn is_to_be_replaced(&self, rate: f64) -> bool {
        match self.way {
            Way::Cached if rate >= FAST => false,
            Way::Cached | Way::Short if rate < FAST => {
                self.taken_for >= FAST || self.since_tries >= self.device_len / 2
            }
            _ => self.since_tries >= self.retry_len,
        }
    }

    /// The next way that may be worth a try. A device is not, beside a cache
    /// that is fast, or was so a moment ago.
    fn untried(&self) -> Option<Way> {
        let is_fast = self.rates.iter().flatten().any(|rate| *rate >= FAST);
        let may_device = self.can_direct && !is_fast && self.slow_len >= self.device_len;
        let can = |way: &Way| *way != Way::Direct || may_device;
        Way::ALL.into_iter().filter(can).find(|way| self.rate(*way).is_none())
    }

    fn best(&self) -> Way {
        let worth = |way: Way| self.rate(way).unwrap_or(0.0) / way.margin();
        Way::ALL
            .into_iter()
            .reduce(|best, way| if worth(way) > worth(best) { way } else { best })
            .unwrap_or(Way::Cached)
    }

    /// Takes a way for the time being.
    fn settle(&mut self, way: Way) {
        let is_fast = self.rate(way).is_some_and(|rate| rate >= FAST);
        let before = self.tried_from.take();
        if before == Some(way) && (is_fast || way == Way::Direct) {
            self.retry_len = doubled(self.retry_len);
        } else if before == Some(Way::Direct) || way == Way::Direct {
            self.retry_len = RETRY_LEN;
        }
        if self.rate(Way::Direct).is_some() {
            self.device_len = if way == Way::Direct { DEVICE_LEN } else { doubled(self.device_len) };
            self.slow_len = 0;
        }
        self.taken_for = self.rate(way).unwrap_or(0.0);
        self.since_tries = 0;
        self.turn_to(way);
    }

    fn turn_to(&mut self, way: Way) {
        if self.way != way {
            self.way = way;
            self.sample.turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `len` bytes at the speed that each way has, in the order of
    /// [`Way::ALL`], and gives how many of them went which way.
    fn write(state: &mut State, len: u64, rates: [f64; 3]) -> [u64; 3] {
        const PIECE: u64 = 128 << 10;
        let mut now = Instant::now();
        let mut written = [0; 3];
        for _ in 0..len / PIECE {
            let way = state.way as usize;
            written[way] += PIECE;
            let turn = state.sample.begin(now, false);
            now += Duration::from_secs_f64(PIECE as f64 / rates[way]);
            state.sample.end(now, turn, PIECE);
            state.judge(now);
        }
        written
    }

    fn new_state() -> State {
        Pace::new().0.into_inner().unwrap()
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_fast_cache_is_kept() {
        assert_eq!(write(&mut new_state(), GIB, [6e9, 9e9, 9e9]), [GIB, 0, 0]);
    }

    #[test]
    fn a_cache_that_turns_slow_is_left_for_a_faster_device() {
        let mut state = new_state();
        write(&mut state, GIB, [6e9, 1e9, 2e9]);
        let [_, _, past] = write(&mut state, GIB, [0.3e9, 0.4e9, 2e9]);
        assert!(past > GIB - GIB / 32, "{past}");
    }

    #[test]
    fn short_pieces_are_taken_where_they_find_memory() {
        let [_, short, _] = write(&mut new_state(), GIB, [0.8e9, 4e9, 2e9]);
        assert!(short > GIB - GIB / 32, "{short}");
    }

    #[test]
    fn a_device_is_not_tried_where_short_pieces_are_fast() {
        let [_, _, past] = write(&mut new_state(), GIB, [0.8e9, 3.5e9, 9e9]);
        assert_eq!(past, 0);
    }

    #[test]
    fn a_way_that_turns_slow_is_left_at_once() {
        let mut state = new_state();
        write(&mut state, GIB, [0.8e9, 6e9, 2e9]);
        assert_eq!((state.way, state.retry_len), (Way::Short, MAX_LEN));
        let [cached, short, _] = write(&mut state, GIB, [0.4e9, 0.4e9, 2e9]);
        assert!(cached + short < 48 << 20, "{cached} {short}");
    }

    #[test]
    fn a_cache_that_was_slow_for_a_moment_is_taken_again() {
        for slow in [[0.3e9, 0.3e9, 2e9], [0.3e9, 3e9, 2e9]] {
            let mut state = new_state();
            write(&mut state, RETRY_LEN, slow);
            assert_ne!(state.way, Way::Cached);
            let [cached, ..] = write(&mut state, GIB, [6e9, 3e9, 2e9]);
            assert!(cached >= GIB - 2 * RETRY_LEN, "{cached}");
        }
    }

    #[test]
    fn a_device_that_was_slow_for_a_moment_is_taken_as_well() {
        let mut state = new_state();
        write(&mut state, RETRY_LEN / 2, [0.4e9, 0.4e9, 0.1e9]);
        assert_eq!(state.way, Way::Cached);
        let [.., past] = write(&mut state, GIB, [0.4e9, 0.4e9, 2e9]);
        assert!(past >= GIB - 3 * RETRY_LEN, "{past}");
    }

    #[test]
    fn tries_in_vain_become_rare() {
        for (way, rates) in
            [[1e9, 0.9e9, 0.2e9], [0.3e9, 4e9, 2e9], [0.3e9, 0.3e9, 2e9]].into_iter().enumerate()
        {
            let written = write(&mut new_state(), 8 * GIB, rates);
            let tried = 8 * GIB - written[way];
            assert!(tried <= 8 * GIB / 25, "{written:?}");
        }
    }

    #[test]
    fn ways_a_little_faster_than_the_first_are_not_worth_it() {
        let [cached, ..] = write(&mut new_state(), GIB, [1.0e9, 1.1e9, 1.2e9]);
        assert!(cached > GIB - GIB / 8, "{cached}");
    }

    #[test]
    fn a_slow_way_whose_speed_varies_is_kept() {
        let mut state = new_state();
        let tried: u64 = (0..GIB / (2 << 20))
            .map(|nth| if nth % 2 == 0 { 1e9 } else { 0.4e9 })
            .map(|cached| write(&mut state, 2 << 20, [cached, 0.3e9, 0.3e9])[1..].iter().sum::<u64>())
            .sum();
        assert!(tried < GIB / 3, "{tried}");
    }

    #[test]
    fn without_direct_writes_the_cache_is_kept() {
        let pace = Pace::new();
        pace.rule_out_direct();
        let mut state = pace.0.into_inner().unwrap();
        assert_eq!(write(&mut state, GIB, [0.1e9, 0.1e9, 2e9])[2], 0);
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
