"""Each row of the table "What works with what" is the subject of a test."""

from pathlib import Path

from works_with import expect_tested

LOOPS, OPTIMIZERS = "torch/topology/test_loops.py", "torch/topology/test_optimizers.py"
TOPOLOGY, DDP = "torch/topology/test_topology.py", "torch/processes/test_ddp.py"
TESTS = {
    "every optimiser of `torch.optim` but `SparseAdam`, which takes sparse gradients alone": (
        f"{OPTIMIZERS}::test_the_trajectory_is_that_of_masking_by_hand"
    ),
    "`torch.optim.LBFGS` with masks that move": (
        f"{LOOPS}::test_lbfgs_names_its_history_which_is_flat_over_all_weights"
    ),
    "optimisers of torchao (8-bit, 4-bit, fp8), pytorch_optimizer, heavyball, schedulefree": (
        "optimizers/test_peers.py::test_the_trajectory_is_that_of_masking_by_hand"
    ),
    "an optimiser that nobody knows": (
        f"{LOOPS}::test_state_of_unknown_optimizers_is_left_alone_and_named_once"
    ),
    "an optimiser of your own": (
        f"{LOOPS}::test_state_that_an_optimizer_declares_is_cleared_however_it_is_nested"
    ),
    "an optimiser inside another: Lookahead, SAM with a closure": (
        f"{LOOPS}::test_sharpness_aware_steps_are_counted_by_closure_and_by_two_calls"
    ),
    "SAM in two calls": f"{LOOPS}::test_sharpness_aware_steps_are_counted_by_closure_and_by_two_calls",
    "several optimisers: Muon and AdamW": f"{LOOPS}::test_muon_for_matrices_and_adamw_for_the_rest",
    "an optimiser that `Topology` was not given": (
        f"{LOOPS}::test_steps_of_an_optimizer_that_topology_was_not_given_are_noticed"
    ),
    "`torch.compile(optimizer.step)`": f"{LOOPS}::test_a_compiled_step",
    "`torch.compile(model)`": "torch/network/test_compiled.py::test_it_compiles_once_and_gives_the_same",
    "step hooks of your own that write to weights": (
        f"{LOOPS}::test_a_hook_after_ours_that_writes_to_weights"
    ),
    "clipping before the step": f"{TOPOLOGY}::test_clipping_uses_the_sparse_models_norm",
    "clipping inside a closure (Lightning's automatic optimisation)": (
        f"{LOOPS}::test_growth_reads_the_gradient_from_before_it_was_clipped"
    ),
    "clipping into new gradient tensors": (
        f"{LOOPS}::test_growth_reads_the_gradient_from_before_it_was_clipped"
    ),
    "gradient accumulation": f"{TOPOLOGY}::test_accumulated_micro_batches_choose_what_one_batch_chooses",
    "`GradScaler`": f"{TOPOLOGY}::test_grad_scaler_skipped_steps_do_not_count",
    "one autocast block around the loop": (
        f"{LOOPS}::test_a_loop_inside_one_autocast_block_sees_new_weights"
    ),
    "`DistributedDataParallel` with `no_sync`": (
        f"{DDP}::test_gradients_may_be_masked_after_each_micro_batch_that_no_process_has_sent_yet"
    ),
    "`fully_shard` (FSDP2)": (
        "torch/processes/test_fsdp.py::test_masks_are_those_of_one_process_with_the_whole"
    ),
    "`AveragedModel` (EMA, SWA)": f"{LOOPS}::test_averages_of_weights_are_as_sparse_as_the_model",
    "averages of buffers (`use_buffers=True`, timm's `ModelEma`)": (
        f"{LOOPS}::test_masks_that_were_averaged_into_their_union_are_cut_and_said"
    ),
    "`update_bn`, `SyncBatchNorm`, hooks on modules, with batched heads": (
        "torch/network/test_execution.py::"
        "test_modules_that_somebody_changed_compute_what_they_compute_in_a_loop"
    ),
    "`requires_grad_(False)`, or a part that is in no optimiser": (
        f"{LOOPS}::test_a_frozen_backbone_keeps_values_and_masks"
    ),
    "`vector_to_parameters`": f"{LOOPS}::test_whatever_writes_to_weights_the_model_computes_sparsely",
    "`copy.deepcopy`, `pickle` of model, optimiser and topology together": (
        f"{LOOPS}::test_a_copy_of_model_optimizer_and_topology_goes_on_by_itself"
    ),
    "an error or Ctrl-C inside a step": (
        f"{LOOPS}::test_an_error_inside_an_optimizers_step_leaves_the_loop_usable"
    ),
    "a state of another training": f"{LOOPS}::test_a_state_of_another_training_is_refused_by_field",
}


def test_each_row_has_a_test() -> None:
    expect_tested("PyTorch", TESTS, Path(__file__).parents[1])
