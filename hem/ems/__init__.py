"""The energy management system (EMS): enrolment, publishing, schedule, wallet, outbox."""
