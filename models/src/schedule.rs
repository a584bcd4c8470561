//! Learning rate as a pure function of the step, for three rules at the switch between stages. With warm-up W, S steps
//! in the span, peak p and floor m:  s < W: p*(s+1)/W;  cosine: m + (p-m)*(1 + cos(pi*(s-W)/(S-W)))/2;
//! WSD (Hu et al., arXiv 2404.06395): p until the last D = round(decay*S) steps, then m + (p-m)*(S-s)/D.
//! The first step already moves, and m is where the step after the last would be, so no step is spent at rate 0.

use std::f64::consts::PI;

use crate::config::choice::choice;
use crate::{Error, Result};

choice! {
    /// What the learning rate does at the switch from one stage to the next.
    pub enum ScheduleRule: "schedule" {
        /// Each stage warms up again and follows its own cosine (the authors' recipe).
        Rewarm = "rewarm",
        /// One warm-up and one cosine over all steps.
        Continuous = "continuous",
        /// One warm-up, a constant rate, and a linear decay over the last steps of the run.
        Wsd = "wsd",
    }
}

/// Length of the warm-up: a number of steps, or a fraction of the span that it opens (a stage with
/// [`ScheduleRule::Rewarm`], the run otherwise). In files a whole number means steps, a decimal a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// This many steps.
    Steps(u64),
    /// This share of the steps, rounded to the nearest step; in 0..=1.
    Fraction(f64),
}

impl Warmup {
    /// Steps of warm-up in a span of `steps` steps.
    pub fn steps(self, steps: u64) -> u64 {
        match self {
            Warmup::Steps(warmup) => warmup,
            Warmup::Fraction(fraction) => (fraction * steps as f64).round() as u64,
        }
    }
}

impl serde::Serialize for Warmup {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Warmup::Steps(steps) => serializer.serialize_u64(steps),
            Warmup::Fraction(fraction) => serializer.serialize_f64(fraction),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Warmup {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged, expecting = "a whole number of steps or a fraction of the steps between 0.0 and 1.0")]
        enum Number {
            Whole(u64),
            Decimal(f64),
        }
        match Number::deserialize(deserializer)? {
            Number::Whole(steps) => Ok(Warmup::Steps(steps)),
            Number::Decimal(fraction) if (0.0..=1.0).contains(&fraction) => Ok(Warmup::Fraction(fraction)),
            Number::Decimal(other) => Err(serde::de::Error::custom(format!(
                "a decimal is a fraction of the steps and lies between 0.0 and 1.0, not {other}; \
                 write a whole number for a number of steps"
            ))),
        }
    }
}

/// The settings of a schedule, before the number of steps is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Behaviour at the switch.
    pub rule: ScheduleRule,
    /// Rate at the end of the warm-up.
    pub peak: f64,
    /// Rate that the decay ends at.
    pub floor: f64,
    /// Length of the warm-up.
    pub warmup: Warmup,
    /// Share of all steps that the linear decay of [`ScheduleRule::Wsd`] takes.
    pub decay_fraction: f64,
}

/// One warm-up and what follows it, over `steps` steps from `first` on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    first: u64,
    steps: u64,
    warmup: u64,
}

/// Learning rate of every step of a run whose stages are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    rates: Rates,
    spans: Vec<Span>,
}

impl Schedule {
    /// A schedule for stages of `stage_steps` steps each, in order.
    ///
    /// # Errors
    /// No steps at all, or a warm-up (and, with WSD, a decay) that is longer than the steps it must fit in.
    pub fn new(rates: Rates, stage_steps: &[u64]) -> Result<Self> {
        let total: u64 = stage_steps.iter().sum();
        if total == 0 {
            return Err(Error::Config("a schedule needs at least one step: give a larger budget".into()));
        }
        let lengths = match rates.rule {
            ScheduleRule::Rewarm => stage_steps.iter().copied().filter(|&steps| steps > 0).collect(),
            ScheduleRule::Continuous | ScheduleRule::Wsd => vec![total],
        };
        let mut spans = Vec::with_capacity(lengths.len());
        let mut first = 0;
        for steps in lengths {
            let span = Span { first, steps, warmup: rates.warmup.steps(steps) };
            fits(&rates, &span)?;
            spans.push(span);
            first += steps;
        }
        Ok(Schedule { rates, spans })
    }

    /// Learning rate of `step`, counted from 0 over the whole run. Steps past the end get the floor.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let Rates { rule, peak, floor, decay_fraction, .. } = self.rates;
        let Some(span) = self.spans.iter().find(|span| step < span.first + span.steps) else {
            return floor;
        };
        let step = step - span.first;
        if step < span.warmup {
            return peak * (step + 1) as f64 / span.warmup as f64;
        }
        match rule {
            ScheduleRule::Rewarm | ScheduleRule::Continuous => {
                let progress = (step - span.warmup) as f64 / (span.steps - span.warmup) as f64;
                floor + (peak - floor) * 0.5 * (1.0 + (PI * progress).cos())
            }
            ScheduleRule::Wsd => {
                let decay = decay_steps(decay_fraction, span.steps);
                let left = span.steps - step;
                if left >= decay { peak } else { floor + (peak - floor) * left as f64 / decay as f64 }
            }
        }
    }

    /// Length of the warm-up that begins at `step`; `None` where none begins.
    pub fn warmup_from(&self, step: u64) -> Option<u64> {
        self.spans.iter().find(|span| span.first == step).map(|span| span.warmup)
    }
}

/// Steps of the linear decay at the end of a WSD run of `steps` steps.
fn decay_steps(fraction: f64, steps: u64) -> u64 {
    (fraction * steps as f64).round() as u64
}

/// Checks that warm-up and decay fit in the span.
fn fits(rates: &Rates, span: &Span) -> Result<()> {
    let decay = if rates.rule == ScheduleRule::Wsd { decay_steps(rates.decay_fraction, span.steps) } else { 0 };
    if span.warmup + decay <= span.steps {
        return Ok(());
    }
    let whose = match rates.rule {
        ScheduleRule::Rewarm => "the stage",
        ScheduleRule::Continuous | ScheduleRule::Wsd => "the run",
    };
    let decay = if decay > 0 { format!(" and a decay of {decay}") } else { String::new() };
    Err(Error::Config(format!(
        "a warm-up of {} steps{decay} does not fit into {whose} of {} steps: give a shorter one (--warmup 0.05 is a \
         twentieth of the steps) or a larger budget",
        span.warmup, span.steps
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(rule: ScheduleRule, warmup: Warmup) -> Rates {
        Rates { rule, peak: 1.0, floor: 0.125, warmup, decay_fraction: 0.2 }
    }

    #[test]
    fn continuous_cosine_at_its_corners() {
        let schedule = Schedule::new(rates(ScheduleRule::Continuous, Warmup::Steps(4)), &[8, 12]).unwrap();
        assert_eq!(schedule.learning_rate(0), 0.25);
        assert_eq!(schedule.learning_rate(3), 1.0, "the last step of the warm-up reaches the peak");
        assert_eq!(schedule.learning_rate(4), 1.0, "the cosine starts at the peak");
        assert!((schedule.learning_rate(12) - 0.5625).abs() < 1e-15, "half way between peak and floor");
        let last = 0.125 + 0.875 * 0.5 * (1.0 + (PI * 15.0 / 16.0).cos());
        assert_eq!(schedule.learning_rate(19), last);
        assert!(last > 0.125 && schedule.learning_rate(20) == 0.125);
        assert_eq!((schedule.warmup_from(0), schedule.warmup_from(8)), (Some(4), None));
    }

    #[test]
    fn rewarm_starts_every_stage_again() {
        let schedule = Schedule::new(rates(ScheduleRule::Rewarm, Warmup::Fraction(0.25)), &[8, 0, 16]).unwrap();
        assert_eq!([0, 1, 2].map(|step| schedule.learning_rate(step)), [0.5, 1.0, 1.0]);
        let last_of_first = 0.125 + 0.875 * 0.5 * (1.0 + (PI * 5.0 / 6.0).cos());
        assert_eq!(schedule.learning_rate(7), last_of_first);
        assert_eq!([8, 9, 10, 11, 12].map(|step| schedule.learning_rate(step)), [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(schedule.learning_rate(23), 0.125 + 0.875 * 0.5 * (1.0 + (PI * 11.0 / 12.0).cos()));
        assert_eq!([0, 7, 8, 24].map(|step| schedule.warmup_from(step)), [Some(2), None, Some(4), None]);
    }

    #[test]
    fn wsd_is_flat_until_the_last_fifth() {
        let schedule = Schedule::new(rates(ScheduleRule::Wsd, Warmup::Steps(2)), &[10, 10]).unwrap();
        assert_eq!([0, 1, 2, 10, 15, 16].map(|step| schedule.learning_rate(step)), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let decay = [17, 18, 19].map(|step| schedule.learning_rate(step));
        assert_eq!(decay, [0.125 + 0.875 * 0.75, 0.125 + 0.875 * 0.5, 0.125 + 0.875 * 0.25]);
    }

    #[test]
    fn one_stage_needs_no_rule() {
        let rewarm = Schedule::new(rates(ScheduleRule::Rewarm, Warmup::Fraction(0.1)), &[30]).unwrap();
        let continuous = Schedule::new(rates(ScheduleRule::Continuous, Warmup::Fraction(0.1)), &[30]).unwrap();
        for step in 0..31 {
            assert_eq!(rewarm.learning_rate(step), continuous.learning_rate(step));
        }
    }

    #[test]
    fn no_warmup_and_only_warmup() {
        let none = Schedule::new(rates(ScheduleRule::Continuous, Warmup::Steps(0)), &[4]).unwrap();
        assert_eq!(none.learning_rate(0), 1.0);
        let only = Schedule::new(rates(ScheduleRule::Continuous, Warmup::Fraction(1.0)), &[4]).unwrap();
        assert_eq!([0, 1, 2, 3].map(|step| only.learning_rate(step)), [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn a_warmup_that_does_not_fit_is_refused() {
        let error = Schedule::new(rates(ScheduleRule::Rewarm, Warmup::Steps(9)), &[20, 8]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("warm-up of 9") && message.contains("8 steps"), "{message}");
        assert!(Schedule::new(rates(ScheduleRule::Continuous, Warmup::Steps(9)), &[20, 8]).is_ok());
        let error = Schedule::new(rates(ScheduleRule::Wsd, Warmup::Steps(9)), &[10]).unwrap_err();
        assert!(error.to_string().contains("decay of 2"), "{error}");
        assert!(Schedule::new(rates(ScheduleRule::Wsd, Warmup::Steps(0)), &[0, 0]).is_err());
    }
}
