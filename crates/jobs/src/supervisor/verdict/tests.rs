use super::*;

const STEP: Option<u64> = Some(40);

fn failure(class: &str, code: &str, message: &str) -> Failure {
    Failure { class: class.into(), code: code.into(), message: message.into(), hint: None }
}

fn train(exit: Exit) -> Ended<'static> {
    Ended {
        stage: Stage::Train,
        exit,
        killed: None,
        result: None,
        failure: None,
        prepared: true,
        desired: Desired::Run,
        checkpoint_before: STEP,
        checkpoint: STEP,
        stalls: 0,
        divisor: 1,
        troubles: 0,
    }
}

fn prepare(exit: Exit) -> Ended<'static> {
    Ended { stage: Stage::Prepare, prepared: false, checkpoint_before: None, checkpoint: None, ..train(exit) }
}

/// State, reason, stalls, seconds to wait: what most rows differ in.
fn row(ended: &Ended<'_>) -> (State, Option<String>, u32, Option<u64>) {
    let verdict = judge(ended);
    assert_eq!(verdict.failure.is_some(), verdict.state == State::Failed && ended.result.is_none());
    (verdict.state, verdict.reason, verdict.stalls, verdict.wait.map(|wait| wait.as_secs()))
}

#[test]
fn a_result_of_this_attempt_is_the_end_whatever_else_is_known() {
    let exits = [Exit::Code(0), Exit::Code(75), Exit::Signal(9), Exit::Unknown, Exit::NotStarted];
    for (status, state) in [
        (Status::Success, State::Succeeded),
        (Status::Error, State::Failed),
        (Status::Cancelled, State::Cancelled),
    ] {
        let result = JobResult::new("i", "n", status, "d".into());
        for exit in exits {
            for desired in [Desired::Run, Desired::Pause, Desired::Cancel] {
                let ended = Ended { result: Some(&result), desired, ..train(exit) };
                assert_eq!(judge(&ended).state, state, "{status:?} {exit:?} {desired:?}");
                assert_eq!(judge(&ended).failure, None);
                let ended = Ended { result: Some(&result), ..prepare(exit) };
                // Nobody makes an adapter while rows are read: such a result is not believed.
                assert_eq!(judge(&ended).state == state, status != Status::Success, "{exit:?}");
            }
        }
    }
}

#[test]
fn rows_that_are_frozen_are_a_queued_job() {
    for exit in [Exit::Code(0), Exit::Signal(9), Exit::Unknown, Exit::NotStarted] {
        let ended = Ended { prepared: true, stalls: 2, ..prepare(exit) };
        assert_eq!(row(&ended), (State::Queued, None, 0, None));
        assert_eq!(row(&Ended { desired: Desired::Cancel, ..ended }).0, State::Cancelled);
        // The store makes of it a paused one.
        assert_eq!(row(&Ended { desired: Desired::Pause, ..ended }).0, State::Queued);
    }
}

#[test]
fn a_cancel_ends_the_job_however_the_worker_went() {
    let memory = failure("memory", "insufficient_memory", "needs 3 GB");
    for exit in
        [Exit::Code(75), Exit::Code(130), Exit::Code(69), Exit::Signal(9), Exit::Unknown, Exit::NotStarted]
    {
        for killed in [None, Some(Killed::Deaf), Some(Killed::Hung(Duration::from_mins(5)))] {
            let ended =
                Ended { desired: Desired::Cancel, killed, stalls: 2, failure: Some(&memory), ..train(exit) };
            assert_eq!(row(&ended), (State::Cancelled, None, 2, None));
        }
        assert_eq!(row(&Ended { desired: Desired::Cancel, ..prepare(exit) }).0, State::Cancelled);
    }
}

#[test]
fn a_checkpointed_job_pauses_or_goes_on() {
    let ended = Ended { checkpoint: Some(50), stalls: 2, ..train(Exit::Code(75)) };
    assert_eq!(row(&ended), (State::Queued, None, 0, None));
    assert_eq!(row(&Ended { desired: Desired::Pause, ..ended }), (State::Paused, None, 0, None));
    assert_eq!(row(&Ended { desired: Desired::Pause, checkpoint: STEP, ..ended }).0, State::Paused);
    let deaf = row(&Ended { desired: Desired::Pause, killed: Some(Killed::Deaf), ..train(Exit::Signal(9)) });
    let reason = "the worker did not stop in time and was ended; the job goes on from step 40";
    assert_eq!(deaf, (State::Paused, Some(reason.into()), 0, None));
    let reading = Ended { desired: Desired::Pause, ..prepare(Exit::Code(75)) };
    assert_eq!(row(&reading), (State::Validating, None, 0, None));
    // Stopped again and again by somebody, it fails like one that crashes; by us, it does not.
    let stuck = Ended { checkpoint: STEP, stalls: 1, ..ended };
    assert_eq!((row(&stuck).0, row(&stuck).2), (State::Queued, 2));
    assert_eq!(row(&Ended { stalls: 2, ..stuck }).0, State::Failed);
    let drained = Ended { killed: Some(Killed::Drained), stalls: 2, ..stuck };
    assert_eq!(row(&drained), (State::Queued, None, 2, None));
    assert_eq!(row(&Ended { exit: Exit::Signal(15), ..drained }), (State::Queued, None, 2, None));
}

#[test]
fn memory_is_tried_once_more_and_then_fails_with_its_numbers() {
    let memory = failure("memory", "insufficient_memory", "needs 90.1 GB, 79.2 GB are free.");
    let first = Ended { failure: Some(&memory), ..train(Exit::Code(69)) };
    let verdict = judge(&first);
    assert_eq!((verdict.state, verdict.divisor, verdict.wait, verdict.stalls), (State::Queued, 2, None, 0));
    let reason = "runs again with micro-batches 2 times smaller than usual: needs 90.1 GB, 79.2 GB are free";
    assert_eq!(verdict.reason.as_deref(), Some(reason));
    // Progress in between does not buy another try: the same rows would meet the same wall.
    let second = Ended { divisor: 2, checkpoint: Some(60), ..first };
    let verdict = judge(&second);
    let told = verdict.failure.unwrap();
    assert_eq!(
        (verdict.state, told.class.as_str(), told.code.as_str()),
        (State::Failed, "memory", memory.code.as_str())
    );
    assert_eq!(told.message, "needs 90.1 GB, 79.2 GB are free, with micro-batches 2 times smaller too");
    let paused = judge(&Ended { desired: Desired::Pause, ..second });
    assert_eq!((paused.state, paused.divisor), (State::Paused, 2));
    assert_eq!(
        judge(&Ended { exit: Exit::Unknown, ..first }).divisor,
        2,
        "the file says it, whoever saw the end"
    );
}

#[test]
fn a_device_is_waited_for_longer_each_time_and_never_counts() {
    let device = failure("device", "device_missing", "cuda:0 is gone");
    let waits = [0, 1, 2, 9].map(|troubles| {
        let ended = Ended { failure: Some(&device), troubles, stalls: 2, ..train(Exit::Code(69)) };
        row(&ended)
    });
    let expected = [(10, "10 s"), (60, "60 s"), (300, "5 min"), (300, "5 min")].map(|(seconds, words)| {
        (State::Queued, Some(format!("tries again after {words}: cuda:0 is gone")), 2, Some(seconds))
    });
    assert_eq!(waits, expected);
    let untold = row(&train(Exit::Code(69)));
    assert_eq!(untold.1.as_deref(), Some("tries again after 10 s: its device cannot be used"));
    let pausing = Ended { desired: Desired::Pause, failure: Some(&device), ..train(Exit::Code(69)) };
    assert_eq!(row(&pausing), (State::Paused, Some("cuda:0 is gone".into()), 0, None));
    let reading = Ended { failure: Some(&device), ..prepare(Exit::Code(69)) };
    assert_eq!((row(&reading).0, row(&reading).3), (State::Validating, Some(10)));
}

/// A kernel that is wrong fails at the same place each time: that must not go on for ever.
#[test]
fn a_device_that_fails_in_the_work_is_waited_for_and_counts() {
    let failed = failure("device", "device_failed", "The GPU failed: cuStreamSynchronize reported 719");
    let first = Ended { failure: Some(&failed), ..train(Exit::Code(69)) };
    let reason = "tries again after 10 s: The GPU failed: cuStreamSynchronize reported 719";
    assert_eq!(row(&first), (State::Queued, Some(reason.into()), 1, Some(10)));
    assert_eq!(row(&Ended { stalls: 2, checkpoint: Some(41), ..first }).2, 0, "it got on");
    let third = judge(&Ended { stalls: 2, ..first });
    let told = third.failure.unwrap();
    assert_eq!(
        (third.state, told.class.as_str(), told.code.as_str()),
        (State::Failed, "device", "device_failed")
    );
    assert!(
        told.message.contains("3 times in a row") && told.message.contains("step 40"),
        "{}",
        told.message
    );
    let pausing = row(&Ended { desired: Desired::Pause, ..first });
    assert_eq!((pausing.0, pausing.3), (State::Paused, None));
}

#[test]
fn a_full_disk_pauses_the_job() {
    let full = failure("io", "disk_full", "cannot write `d`: the disk is full");
    let ended = Ended { failure: Some(&full), stalls: 1, ..train(Exit::Code(74)) };
    let reason = "cannot write `d`: the disk is full; free some space, then `tunesmith resume` the job";
    assert_eq!(row(&ended), (State::Paused, Some(reason.into()), 1, None));
    let reading = Ended { failure: Some(&full), ..prepare(Exit::Code(74)) };
    assert_eq!((row(&reading).0, row(&reading).3), (State::Validating, Some(10)));
}

#[test]
fn what_else_ends_a_worker_is_tried_three_times_unless_it_gets_on() {
    let io = failure("io", "io_error", "cannot read `x`: input/output error");
    let hung = Some(Killed::Hung(Duration::from_mins(5)));
    for (exit, killed, told, class, words) in [
        (Exit::Signal(9), None, None, "worker_lost", "was killed by signal 9 (SIGKILL)"),
        (Exit::Signal(11), None, None, "worker_lost", "was killed by signal 11 (SIGSEGV)"),
        (Exit::Code(0), None, None, "worker_lost", "ended with code 0 and without its result"),
        (Exit::Code(65), None, None, "worker_lost", "ended with code 65"),
        (Exit::Code(70), None, None, "worker_lost", "ended with an internal error"),
        (Exit::Code(74), None, None, "worker_lost", "ended with code 74"),
        (Exit::Code(137), None, None, "worker_lost", "ended with code 137"),
        (Exit::Unknown, None, None, "worker_lost", "died unseen"),
        (Exit::Signal(9), hung, None, "worker_lost", "gave no sign of life for 5 min"),
        (Exit::Code(75), hung, None, "worker_lost", "gave no sign of life for 5 min"),
        (Exit::Code(74), None, Some(&io), "io", "cannot read `x`: input/output error"),
    ] {
        let first = Ended { killed, failure: told, ..train(exit) };
        let (state, reason, stalls, wait) = row(&first);
        assert_eq!((state, stalls, wait), (State::Queued, 1, told.map(|_| 10)));
        assert!(reason.as_ref().unwrap().contains(words), "{reason:?}");
        let second = row(&Ended { stalls: 1, ..first });
        assert_eq!((second.0, second.2), (State::Queued, 2));

        let third = judge(&Ended { stalls: 2, ..first });
        let failure = third.failure.unwrap();
        assert_eq!((third.state, third.stalls, failure.class.as_str()), (State::Failed, 3, class));
        let message = &failure.message;
        assert!(
            message.contains(words) && message.contains("3 times") && message.contains("step 40"),
            "{message}"
        );

        let newer = row(&Ended { stalls: 2, checkpoint: Some(41), ..first });
        assert_eq!((newer.0, newer.2), (State::Queued, 0), "it got on");
        let first_checkpoint = Ended { stalls: 2, checkpoint_before: None, checkpoint: Some(0), ..first };
        assert_eq!(row(&first_checkpoint).2, 0);

        let pausing = row(&Ended { stalls: 2, desired: Desired::Pause, ..first });
        assert_eq!((pausing.0, pausing.2), (State::Paused, 3), "whoever resumes it decides");
        let reading = Ended { killed, failure: told, ..prepare(exit) };
        assert_eq!((row(&reading).0, row(&reading).2), (State::Validating, 1));
        let reading = judge(&Ended { stalls: 2, ..reading }).failure.unwrap();
        assert!(reading.message.contains("while its rows were read"), "{}", reading.message);
    }
    let killed = judge(&Ended { stalls: 2, ..train(Exit::Signal(9)) }).failure.unwrap();
    assert!(killed.hint.unwrap().contains("memory"));
    let reason = row(&Ended { stalls: 0, ..train(Exit::Signal(6)) }).1.unwrap();
    assert_eq!(
        reason,
        "runs again from step 40 (attempt 2 of 3): the worker was killed by signal 6 (SIGABRT)"
    );
}

#[test]
fn an_attempt_that_was_never_seen_to_start_costs_nothing() {
    let ended = Ended { stalls: 2, ..train(Exit::NotStarted) };
    assert_eq!(row(&ended), (State::Queued, None, 2, None));
    assert_eq!(row(&Ended { desired: Desired::Pause, ..ended }).0, State::Paused);
    assert_eq!(row(&Ended { stalls: 2, ..prepare(Exit::NotStarted) }), (State::Validating, None, 2, None));
}

#[test]
fn no_verdict_is_an_illegal_step_or_contradicts_itself() {
    let memory = failure("memory", "insufficient_memory", "m");
    let full = failure("io", "disk_full", "f");
    let failed = failure("device", "device_failed", "d");
    let success = JobResult::new("i", "n", Status::Success, "d".into());
    let exits = [0, 65, 69, 70, 74, 75, 130].map(Exit::Code).into_iter();
    for exit in exits.chain([Exit::Signal(9), Exit::Unknown, Exit::NotStarted]) {
        for desired in [Desired::Run, Desired::Pause, Desired::Cancel] {
            for killed in
                [None, Some(Killed::Deaf), Some(Killed::Drained), Some(Killed::Hung(Duration::ZERO))]
            {
                for told in [None, Some(&memory), Some(&full), Some(&failed)] {
                    for result in [None, Some(&success)] {
                        for ended in [train(exit), prepare(exit)] {
                            let ended = Ended { desired, killed, failure: told, result, stalls: 1, ..ended };
                            let verdict = judge(&ended);
                            let from = ended.stage.state();
                            assert!(from == verdict.state || from.may_become(verdict.state), "{ended:?}");
                            assert_ne!(verdict.state, State::Running);
                            assert!(
                                verdict.wait.is_none()
                                    || matches!(verdict.state, State::Queued | State::Validating)
                            );
                            assert!(verdict.divisor >= ended.divisor);
                        }
                    }
                }
            }
        }
    }
}
