//! The sources of one transfer, and which of them does what.
//!
//! All sources take from one row of tasks. A task that a source does not bring to its end goes back, and another takes
//! it; one that has nothing left to take takes over what a much slower one has in its hands. So a slow or dying source
//! holds up nobody.
//!
//! Invariant: a task is in one place at a time (waiting, flying, done or hopeless); it is hopeless only when every source
//! that is left said that it does not have it, and none may come any more.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Most sources of one transfer.
pub const MEMBERS_MAX: usize = 16;
/// What a source has had in its hands for less than this is not taken over, and nothing is unless that much is gained.
const PATIENCE: Duration = Duration::from_secs(1);
/// A task is taken over only from a source that is busy this many times as long as the one that takes it would be.
const LONGER: f64 = 2.0;
/// How long a source is left alone after it did not have this many tasks in a row; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// See [`PAUSE_FIRST`].
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// See [`PAUSE_FIRST`].
const MISSES: u32 = 4;

/// Something to fetch.
pub trait Task: Send + 'static {
    /// Bytes that are still to come.
    fn left(&self) -> u64;
}

/// Who is there and what there is to do. `T` is cheap to clone.
pub struct Crew<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    members: Vec<Member>,
    waiting: VecDeque<Waiting<T>>,
    flying: Vec<Flying<T>>,
    /// Tasks may come that were never given to anybody.
    fed: bool,
    /// Sources may still come.
    open: bool,
    numbers: u64,
}

#[derive(Default)]
struct Member {
    gone: bool,
    /// Bytes of tasks that have landed.
    bytes: u64,
    /// How long it had anything in its hands, and since when it has again.
    busy: Duration,
    since: Option<Instant>,
    misses: u32,
    paused_until: Option<Instant>,
}

struct Waiting<T> {
    task: T,
    lacking: Lacking,
    /// Somebody took it over, and it is theirs.
    kept_for: Option<usize>,
}

/// The sources that do not have a task, a bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Lacking(u16);

impl Lacking {
    fn has(self, member: usize) -> bool {
        self.0 & (1 << member) != 0
    }

    fn and(self, member: usize) -> Self {
        Self(self.0 | 1 << member)
    }

    fn without(self, member: usize) -> Self {
        Self(self.0 & !(1 << member))
    }
}

struct Flying<T> {
    number: u64,
    member: usize,
    task: T,
    lacking: Lacking,
    since: Instant,
    bytes: u64,
    taken: CancellationToken,
    thief: Option<usize>,
}

/// A task in the hands of a source.
pub struct InHand<T> {
    pub task: T,
    /// Somebody else takes it over: it is to be put back at once.
    pub taken: CancellationToken,
    number: u64,
}

/// What a source may do next.
pub enum Next<T> {
    /// This.
    Task(InHand<T>),
    /// Bring a fresh task, if there are more.
    Fresh,
    /// Nothing yet: something changed, or this time went by.
    Wait(Duration),
    /// There is nothing to do any more, here or for this source.
    Leave,
}

impl<T: Task + Clone> Crew<T> {
    /// Nobody is there yet; more may come until [`Crew::close`].
    pub fn new() -> Self {
        let state = State {
            members: Vec::new(),
            waiting: VecDeque::new(),
            flying: Vec::new(),
            fed: false,
            open: true,
            numbers: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// One more source; its number, unless there are too many.
    pub fn join(&self) -> Option<usize> {
        let mut s = self.lock();
        (s.members.len() < MEMBERS_MAX).then(|| {
            s.members.push(Member::default());
            s.members.len() - 1
        })
    }

    /// No more sources come.
    pub fn close(&self) {
        self.change(|s| s.open = false);
    }

    /// No more fresh tasks come.
    pub fn fed(&self) {
        self.change(|s| s.fed = true);
    }

    /// A source is not asked any more. What it has in its hands is put back by whoever holds it.
    pub fn retire(&self, member: usize) {
        self.change(|s| {
            s.members[member].gone = true;
            for w in s.waiting.iter_mut().filter(|w| w.kept_for == Some(member)) {
                w.kept_for = None;
            }
        });
    }

    /// Sources that are still asked.
    pub fn size(&self) -> usize {
        self.lock().members.iter().filter(|m| !m.gone).count()
    }

    /// What `member` does next. Waits where there is nothing to do yet, and says so now and then.
    pub async fn next(&self, member: usize) -> Next<T> {
        // Begun before the look, so that no change falls between the two.
        let mut changed = std::pin::pin!(self.changed.notified());
        changed.as_mut().enable();
        let next = self.next_at(member, Instant::now());
        if let Next::Wait(at_most) = next {
            let _ = tokio::time::timeout(at_most, changed).await;
        }
        next
    }

    /// Whether there is nothing left to do for this source: all is done, or it is not asked any more.
    pub fn is_over_for(&self, member: usize) -> bool {
        let s = self.lock();
        s.is_over() || s.members[member].gone
    }

    /// Whether all is done.
    pub fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    fn next_at(&self, member: usize, now: Instant) -> Next<T> {
        let mut s = self.lock();
        if s.members[member].gone || s.is_over() {
            return Next::Leave;
        }
        if let Some(left) = s.members[member].paused_until.map(|until| until.saturating_duration_since(now)) {
            if left.is_zero() {
                // By now it may have what it had not.
                s.members[member].paused_until = None;
                s.waiting.iter_mut().for_each(|w| w.lacking = w.lacking.without(member));
            } else if s.members.iter().enumerate().any(|(i, m)| i != member && !m.gone) {
                return Next::Wait(left);
            }
        }
        let mine = |w: &Waiting<T>| !w.lacking.has(member) && w.kept_for.is_none_or(|k| k == member);
        if let Some(at) = s.waiting.iter().position(mine)
            && let Some(Waiting { task, lacking, .. }) = s.waiting.remove(at)
        {
            return Next::Task(s.fly(member, task, lacking, now));
        }
        if !s.fed {
            return Next::Fresh;
        }
        if let Some(victim) = s.slowest(member, now) {
            s.flying[victim].thief = Some(member);
            s.flying[victim].taken.cancel();
        }
        Next::Wait(PATIENCE / 2)
    }

    /// A fresh task, for whoever brought it.
    pub fn take(&self, member: usize, task: T) -> InHand<T> {
        self.lock().fly(member, task, Lacking::default(), Instant::now())
    }

    /// More to do, which nobody holds.
    pub fn add(&self, tasks: impl IntoIterator<Item = T>) {
        self.change(|s| s.waiting.extend(tasks.into_iter().map(Waiting::new)));
    }

    /// A task is done.
    pub fn done(&self, hand: &InHand<T>) {
        self.change(|s| {
            if let Some(f) = s.land(hand.number) {
                s.members[f.member].misses = 0;
                s.members[f.member].paused_until = None;
            }
        });
    }

    /// A task comes back, as `task` if less is left of it. `lacks`: its source does not have it.
    pub fn back(&self, hand: &InHand<T>, task: T, lacks: bool) {
        self.change(|s| {
            let Some(f) = s.land(hand.number) else { return };
            let lacking = if lacks { f.lacking.and(f.member) } else { f.lacking };
            if lacks {
                s.members[f.member].missed(Instant::now());
            }
            let kept_for = f.thief.filter(|&thief| !s.members[thief].gone && !lacking.has(thief));
            s.waiting.push_front(Waiting { task, lacking, kept_for });
        });
    }

    /// Tasks that nobody has who is there or may come.
    pub fn hopeless(&self) -> Vec<T> {
        let mut found = Vec::new();
        self.change(|s| {
            if s.open {
                return;
            }
            let there: Vec<usize> = (0..s.members.len()).filter(|&m| !s.members[m].gone).collect();
            let (none, some): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut s.waiting)
                .into_iter()
                .partition(|w: &Waiting<T>| !there.is_empty() && there.iter().all(|&m| w.lacking.has(m)));
            s.waiting = some;
            found.extend(none.into_iter().map(|w| w.task));
        });
        found
    }

    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Consistent after each statement, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    fn new(task: T) -> Self {
        Self { task, lacking: Lacking::default(), kept_for: None }
    }
}

impl Member {
    /// It has not got what it was asked for: it may be fetching it itself, and is asked again later.
    fn missed(&mut self, now: Instant) {
        self.misses += 1;
        if self.misses >= MISSES {
            let times = 1u32 << (self.misses - MISSES).min(5);
            self.paused_until = Some(now + (PAUSE_FIRST * times).min(PAUSE_MAX));
        }
    }
}

impl<T: Task + Clone> State<T> {
    fn is_over(&self) -> bool {
        self.fed && self.waiting.is_empty() && self.flying.is_empty()
    }

    fn fly(&mut self, member: usize, task: T, lacking: Lacking, now: Instant) -> InHand<T> {
        self.numbers += 1;
        let (number, taken) = (self.numbers, CancellationToken::new());
        let bytes = task.left();
        self.members[member].since.get_or_insert(now);
        self.flying.push(Flying {
            number,
            member,
            task: task.clone(),
            lacking,
            since: now,
            bytes,
            taken: taken.clone(),
            thief: None,
        });
        InHand { task, taken, number }
    }

    fn land(&mut self, number: u64) -> Option<Flying<T>> {
        let at = self.flying.iter().position(|f| f.number == number)?;
        let f = self.flying.swap_remove(at);
        let member = &mut self.members[f.member];
        member.bytes += f.bytes.saturating_sub(f.task.left());
        if self.flying.iter().all(|other| other.member != f.member)
            && let Some(since) = self.members[f.member].since.take()
        {
            self.members[f.member].busy += since.elapsed();
        }
        Some(f)
    }

    /// Bytes in a second that a member brings, and bytes that are left in its hands. No rate where nothing came yet and
    /// nothing had time to.
    fn load(&self, member: usize, now: Instant) -> (Option<f64>, f64) {
        let own = self.flying.iter().filter(|f| f.member == member);
        let (moved, left) = own.fold((0, 0), |(moved, all), f| {
            let left = f.task.left();
            (moved + f.bytes.saturating_sub(left), all + left)
        });
        let m = &self.members[member];
        let busy = m.busy + m.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let known = busy > PATIENCE || m.bytes + moved > 0;
        (known.then(|| (m.bytes + moved) as f64 / busy.as_secs_f64().max(1e-3)), left as f64)
    }

    /// What `thief` had better take over: of the source that will be busy longest, what it has most left of.
    fn slowest(&self, thief: usize, now: Instant) -> Option<usize> {
        let loads: Vec<_> = (0..self.members.len()).map(|m| self.load(m, now)).collect();
        let known: Vec<f64> = loads.iter().filter_map(|l| l.0).collect();
        // Who has not shown how fast it is may be as fast as the others.
        let usual = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let (own, held) = loads[thief];
        let own = own.unwrap_or(usual).max(1.0);
        let mut worst = None;
        for (i, f) in self.flying.iter().enumerate() {
            let old = now.saturating_duration_since(f.since) > PATIENCE;
            if f.member == thief || f.thief.is_some() || f.lacking.has(thief) || !old {
                continue;
            }
            let (rate, theirs) = loads[f.member];
            let (busy, left) = (theirs / rate.unwrap_or(usual).max(1.0), f.task.left() as f64);
            let gained = busy > (held + left) / own * LONGER + PATIENCE.as_secs_f64();
            if gained && worst.is_none_or(|(_, b, l)| (b, l) < (busy, left)) {
                worst = Some((i, busy, left));
            }
        }
        worst.map(|(i, ..)| i)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone)]
    struct Bytes(Arc<Mutex<u64>>);

    impl Task for Bytes {
        fn left(&self) -> u64 {
            *self.0.lock().unwrap()
        }
    }

    fn task(bytes: u64) -> Bytes {
        Bytes(Arc::new(Mutex::new(bytes)))
    }

    fn crew(members: usize) -> Crew<Bytes> {
        let crew = Crew::new();
        (0..members).for_each(|m| assert_eq!(crew.join(), Some(m)));
        crew
    }

    fn hand(next: Next<Bytes>) -> InHand<Bytes> {
        let Next::Task(hand) = next else { panic!("there is a task") };
        hand
    }

    #[test]
    fn what_one_lacks_another_does_and_what_all_lack_is_hopeless() {
        let crew = crew(2);
        crew.add([task(1)]);
        crew.fed();
        let first = hand(crew.next_at(0, Instant::now()));
        crew.back(&first, first.task.clone(), true);
        assert!(matches!(crew.next_at(0, Instant::now()), Next::Wait(_)));
        assert!(crew.hopeless().is_empty());
        let second = hand(crew.next_at(1, Instant::now()));
        crew.back(&second, second.task.clone(), true);
        assert!(crew.hopeless().is_empty(), "somebody may come who has it");
        crew.close();
        assert_eq!(crew.hopeless().len(), 1);
        assert!(matches!(crew.next_at(0, Instant::now()), Next::Leave));
    }

    #[test]
    fn a_source_that_leaves_holds_up_nothing() {
        let crew = crew(2);
        crew.close();
        let taken = crew.take(0, task(5));
        crew.fed();
        assert!(matches!(crew.next_at(1, Instant::now()), Next::Wait(_)), "it may come back");
        crew.retire(0);
        crew.back(&taken, taken.task.clone(), false);
        assert!(matches!(crew.next_at(0, Instant::now()), Next::Leave));
        let again = hand(crew.next_at(1, Instant::now()));
        crew.done(&again);
        assert!(matches!(crew.next_at(1, Instant::now()), Next::Leave));
        assert_eq!(crew.size(), 1);
    }

    #[test]
    fn what_lies_with_a_slow_source_is_taken_over_once() {
        let crew = crew(2);
        let start = Instant::now();
        let (slow, quick) = (crew.take(0, task(1000)), crew.take(1, task(1_000_000)));
        crew.fed();
        *quick.task.0.lock().unwrap() = 0;
        *slow.task.0.lock().unwrap() = 990;
        let later = start + Duration::from_secs(5);
        assert!(matches!(crew.next_at(1, start), Next::Wait(_)) && !slow.taken.is_cancelled(), "too soon to tell");
        assert!(matches!(crew.next_at(1, later), Next::Wait(_)) && slow.taken.is_cancelled());
        crew.back(&slow, slow.task.clone(), false);
        assert!(!matches!(crew.next_at(0, later), Next::Task(_)), "it is not theirs any more");
        crew.done(&quick);
        let stolen = hand(crew.next_at(1, later));
        assert_eq!(stolen.task.left(), 990);
        crew.done(&stolen);
        assert!(matches!(crew.next_at(0, Instant::now()), Next::Leave));
    }

    #[test]
    fn a_newcomer_gets_its_share_of_what_others_hold() {
        let crew = crew(2);
        let start = Instant::now();
        let held: Vec<_> = (0..8).map(|_| crew.take(0, task(1000))).collect();
        crew.fed();
        held.iter().for_each(|h| *h.task.0.lock().unwrap() = 900);
        let later = start + Duration::from_secs(4);
        let mut open: Vec<_> = held.iter().collect();
        while let Next::Wait(_) = crew.next_at(1, later)
            && let Some(at) = open.iter().position(|h| h.taken.is_cancelled())
        {
            let taken = open.remove(at);
            crew.back(taken, taken.task.clone(), false);
            hand(crew.next_at(1, later));
        }
        let taken = held.len() - open.len();
        assert!((1..=4).contains(&taken), "{taken} of 8 are taken over");
    }

    #[test]
    fn who_took_over_and_left_keeps_nothing() {
        let crew = crew(2);
        let start = Instant::now();
        let slow = crew.take(0, task(1000));
        let quick = crew.take(1, task(1_000_000));
        crew.fed();
        *quick.task.0.lock().unwrap() = 0;
        let _ = crew.next_at(1, start + Duration::from_secs(5));
        crew.done(&quick);
        crew.back(&slow, slow.task.clone(), false);
        crew.retire(1);
        hand(crew.next_at(0, Instant::now()));
    }

    #[test]
    fn the_only_source_is_not_asked_again_at_once_for_what_it_lacks() {
        let crew = crew(1);
        crew.add((0..6).map(|_| task(1)));
        crew.fed();
        for _ in 0..6 {
            let hand = hand(crew.next_at(0, Instant::now()));
            crew.back(&hand, hand.task.clone(), true);
        }
        assert!(matches!(crew.next_at(0, Instant::now()), Next::Wait(_)), "others may come who have it");
        assert!(matches!(crew.next_at(0, Instant::now() + PAUSE_MAX), Next::Task(_)));
    }

    #[test]
    fn who_has_nothing_is_left_alone_for_a_while_unless_it_is_the_last() {
        let crew = crew(2);
        crew.add((0..8).map(|_| task(1)));
        for _ in 0..MISSES {
            let hand = hand(crew.next_at(0, Instant::now()));
            crew.back(&hand, hand.task.clone(), true);
        }
        let Next::Wait(pause) = crew.next_at(0, Instant::now()) else { panic!("it pauses") };
        assert!(pause <= PAUSE_FIRST && pause > PAUSE_FIRST / 2);
        assert!(matches!(crew.next_at(0, Instant::now() + PAUSE_FIRST), Next::Task(_)));
        crew.retire(1);
        hand(crew.next_at(0, Instant::now()));
    }
}
